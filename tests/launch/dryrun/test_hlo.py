"""Bytes between chips and of HBM, on programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixelrec_jax.launch.dryrun.hlo import Program


def compiled_on_eight(function, spec: PartitionSpec) -> Program:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    function = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, spec))
    return Program(jax.jit(function).lower(x).compile().as_text())


BOTH, ROWS = ("a", "b"), PartitionSpec(("a", "b"))  # a device holds [2, 32]: 256 bytes
EXCHANGES = {
    "all-reduce": (lambda x: jax.lax.psum(x, "b"), 2 * 3 / 4 * 256, {0, 1, 2, 3}),
    "all-gather": (
        lambda x: jax.lax.all_gather(x, "a").sum(0),
        1 / 2 * 512,
        {0, 4},
    ),
    "reduce-scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "a", scatter_dimension=0, tiled=True), (2, 1)),
        1 / 2 * 256,
        {0, 4},
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, BOTH, 1, 0, tiled=True).reshape(2, 32),
        7 / 8 * 256,
        set(range(8)),
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        256,
        {0, 1},
    ),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_bytes_of_every_kind_are_those_of_its_ring(kind):
    function, sent, group = EXCHANGES[kind]
    (found,) = compiled_on_eight(function, ROWS).collectives(chips=8)
    assert (found.kind, found.bytes, set(found.group)) == (kind, sent, group)


def test_an_exchange_in_a_loop_counts_as_often_as_the_loop_runs():
    def five_times(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.psum(jnp.sin(x), "b"), x)

    found = compiled_on_eight(five_times, ROWS).collectives(chips=8)
    assert sum(x.bytes for x in found) == 5 * 2 * 3 / 4 * 256


def test_hbm_bytes_of_a_product_are_its_operands_and_its_result():
    x = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    y = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    program = Program(jax.jit(jnp.dot).lower(x, y).compile().as_text())
    assert program.hbm_bytes() == 4 * (128 * 64 + 64 * 32 + 128 * 32)


# What only the TPU compiler writes, shortened: an exchange over two fusions, reduce-scatters as
# all-reduces that are sliced, a loop whose condition alone knows its length, groups by mesh axes,
# on-chip memory (S(1)) and other slices.
TPU = """\
HloModule jit_f, is_scheduled=true

%start (p: bf16[256,8]) -> bf16[1024,8] {
  %p = bf16[256,8]{1,0} parameter(0)
  ROOT %g.1 = bf16[1024,8]{1,0} all-gather(%p), channel_id=6, replica_groups=mesh['x'=2,'y'=4], \
device_ids=([4,2]T(1,0)) {'y'}, dimensions={0}
}

%done (q: bf16[256,8]) -> bf16[1024,8] {
  %q = bf16[256,8]{1,0} parameter(0)
  ROOT %g.2 = bf16[1024,8]{1,0} all-gather(%q), channel_id=6, replica_groups=mesh['x'=2,'y'=4], \
device_ids=([4,2]T(1,0)) {'y'}, dimensions={0}
}

%all-reduce-scatter.1 (m: f32[64]) -> f32[8] {
  %m = f32[64]{0:T(128)S(1)} parameter(0)
  %all-reduce.11 = f32[64]{0:T(128)} all-reduce(%m), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %k = u32[] partition-id()
  ROOT %dynamic-slice.47 = f32[8]{0:T(128)S(1)} dynamic-slice(%all-reduce.11, %k), \
dynamic_slice_sizes={8}
}

%all-reduce-scatter.2 (n: f32[32], o: f32[16]) -> (f32[8], f32[4]) {
  %n = f32[32]{0:T(128)S(1)} parameter(0)
  %o = f32[16]{0:T(128)S(1)} parameter(1)
  %all-reduce.12 = (f32[32]{0:T(128)}, f32[16]{0:T(128)}) all-reduce(%n, %o), channel_id=1, \
replica_groups=[2,4]<=[8], to_apply=%add
  %n.1 = f32[32]{0:T(128)} get-tuple-element(%all-reduce.12), index=0
  %o.1 = f32[16]{0:T(128)} get-tuple-element(%all-reduce.12), index=1
  %l = u32[] partition-id()
  %n.2 = f32[8]{0:T(128)S(1)} dynamic-slice(%n.1, %l), dynamic_slice_sizes={8}
  %o.2 = f32[4]{0:T(128)S(1)} dynamic-slice(%o.1, %l), dynamic_slice_sizes={4}
  ROOT %both = (f32[8]{0:T(128)S(1)}, f32[4]{0:T(128)S(1)}) tuple(%n.2, %o.2)
}

%condition (c: (s32[], f32[100])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%i, %limit), direction=LT
}

%body (b: (s32[], f32[100])) -> (s32[], f32[100]) {
  %b = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%b), index=0
  %v = f32[100]{0:T(128)} get-tuple-element(%b), index=1
  %r = f32[100]{0:T(128)S(1)} all-reduce(%v), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), \
to_apply=%add
  %w = f32[100]{0:T(128)} copy(%r)
  ROOT %t = (s32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%j, %w)
}

ENTRY %main (a: bf16[256,8], l: (s32[], f32[100])) -> bf16[1024,8] {
  %a = bf16[256,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %l = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(1)
  %token = token[] after-all()
  %send = (bf16[256,8]{1,0}, u32[], token[]) send(%a, %token), channel_id=6, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %loop = (s32[]{:T(128)}, f32[100]{0:T(128)}) while(%l), condition=%condition, body=%body
  %m.1 = f32[64]{0:T(128)S(1)} constant({...})
  %n.3 = f32[32]{0:T(128)S(1)} constant({...})
  %o.3 = f32[16]{0:T(128)S(1)} constant({...})
  %f.3 = f32[8]{0:T(128)S(1)} fusion(%m.1), kind=kCustom, calls=%all-reduce-scatter.1
  %f.4 = (f32[8]{0:T(128)S(1)}, f32[4]{0:T(128)S(1)}) fusion(%n.3, %o.3), kind=kCustom, \
calls=%all-reduce-scatter.2
  %f.1 = bf16[1024,8]{1,0:T(8,128)S(1)} fusion(%a), kind=kCustom, calls=%start
  ROOT %f.2 = bf16[1024,8]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%done
}
"""


def test_what_only_the_tpu_compiler_writes():
    program = Program(TPU)
    found = {(x.kind, x.group): x.bytes for x in program.collectives(chips=8, slices=4)}
    assert found == {
        ("all-gather", (0, 2, 4, 6)): 3 / 4 * 1024 * 8 * 2,  # once
        ("all-reduce", (0, 4)): 7 * 400,
        ("reduce-scatter", tuple(range(8))): 7 / 8 * 256,
        ("reduce-scatter", (0, 1, 2, 3)): 3 / 4 * (128 + 64),
        ("all-reduce", None): 2 * 3 / 4 * 256 * 8 * 2,
    }
    # The result of the last fusion; seven times %v is read, %w written, and two numbers compared.
    assert program.hbm_bytes() == 1024 * 8 * 2 + 7 * (2 * 400 + 2 * 4)
