"""The device mesh, where parameters live on it, and how host batches become global arrays."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelrec_jax.system.config import mesh_shape
from pixelrec_jax.system.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))  # the leading axis G of a training batch
CATALOG_SPEC = PartitionSpec(AXES)  # rows of the catalogue, over every device
TABLE_SPEC = PartitionSpec(("fsdp", "tensor"))  # rows of tables of items and users

REPLICATED = PartitionSpec()
_TRANSFORMER = r"/(block_\d+|layer_\d+|attention|attention_pool)"
# The first pattern that is found in a parameter's "a/b/c" path decides; every path must match one.
# Specs are of the last two axes, [in, out] of kernels, of convolutions, too.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # The largest parameters of models on ids. `tables` reads and updates their rows.
    (r"(^|/)table$", PartitionSpec(TABLE_SPEC[0], None)),
    # Transformers (Megatron-LM, Shoeybi et al. 2019): a device of the axis "tensor" computes some
    # of the heads and hidden units, whose contributions are summed behind the second product.
    (rf"{_TRANSFORMER}/(query|key|value|mlp_in|feed_in)/kernel$", PartitionSpec("fsdp", "tensor")),
    (rf"{_TRANSFORMER}/(query|key|value|mlp_in|feed_in)/bias$", PartitionSpec("tensor")),
    (rf"{_TRANSFORMER}/(out|mlp_out|feed_out)/kernel$", PartitionSpec("tensor", "fsdp")),
    # The widest stages of ResNets: the same with the channels between two convolutions, in units
    # of three the last two, which are most of the work.
    (r"/layer[34]/unit_\d+/conv_2/conv/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"/layer[34]/unit_\d+/conv_3/conv/kernel$", PartitionSpec("tensor", "fsdp")),
    # Every other matrix is split for memory only and gathered where it is used.
    (r"(^|/)(kernel|recurrent)$", PartitionSpec("fsdp", None)),
    (r"(^|/)(bias|scale|scale_\d|\w+_bias)$", REPLICATED),
    (r"(^|/)(class_token|position|relative|mask|\w+_interests|codebook)$", REPLICATED),
    (r"(^|/)batch_stats/.*/(mean|var)$", REPLICATED),
)


def build_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices (default: all) in a mesh data, fsdp, tensor; data=-1 takes what is left.

    Of several TPU slices each holds whole groups of the axes fsdp and tensor: what they exchange
    for every layer does not cross the slower network between slices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or to that of a slice.
    """
    devices = jax.devices() if devices is None else devices
    # On GPUs the index is that of the host, where groups may well span several.
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    data, fsdp, tensor = mesh_shape(mesh, len(devices), slices=slices)
    # Automatic axes: the compiler propagates shardings from the parameters and the batch.
    types = (AxisType.Auto,) * 3
    if slices == 1:
        return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=types, devices=devices)
    grid = create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices=devices
    )
    return Mesh(grid, AXES, axis_types=types)


def infer_shardings(
    tree: Any,
    mesh: Mesh,
    *,
    min_size: int = 0,
    rules: Sequence[tuple[str, PartitionSpec]] = PARAMETER_RULES,
) -> Any:
    """Returns a NamedSharding for every leaf, by the first rule that its path matches.

    Works on anything that contains parameter paths, such as optimizer moments: a rule is searched
    in the whole path. Scalars are replicated, as is an axis that does not divide as its rule says:
    there is no harm in that but memory. Tables always divide (`pad_rows`).

    Args:
      tree: of arrays or their shapes.
      mesh: the device mesh.
      min_size: parameters with fewer entries are not split over "fsdp": what that saves is not
        worth sending them.
      rules: see `PARAMETER_RULES`.

    Raises:
      UserError: a leaf that no rule covers.
    """

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not leaf.shape:
            return NamedSharding(mesh, REPLICATED)
        for pattern, spec in rules:
            if re.search(pattern, name):
                small = leaf.size < min_size
                return NamedSharding(mesh, fit_spec(spec, leaf.shape, mesh, small=small))
        raise UserError(
            f"no sharding rule covers the parameter {name} {list(leaf.shape)}; add one to "
            "PARAMETER_RULES in pixelrec_jax/parallel/sharding.py"
        )

    return jax.tree_util.tree_map_with_path(choose, tree)


def fit_spec(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, *, small: bool
) -> PartitionSpec:
    """Returns the spec of all axes for that of the last ones, without what does not apply."""
    specs = (*(None,) * (len(shape) - len(spec)), *spec)

    def applies(size: int, axes: Any) -> bool:
        if axes is None or (small and axes == "fsdp"):
            return False
        return size % num_shards(mesh, PartitionSpec(axes)) == 0

    return PartitionSpec(
        *(axes if applies(size, axes) else None for size, axes in zip(shape, specs, strict=True))
    )


def unshard_params(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters as layers compute with them: whole along "fsdp", but for tables.

    Asked for, since the compiler may else send activations instead, which are far larger.
    """
    whole = infer_shardings(params, mesh, min_size=sys.maxsize)
    return jax.lax.with_sharding_constraint(params, whole)


def replicate(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns an array of a compiled function as a whole on every device."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, REPLICATED))


def num_shards(mesh: Mesh, spec: PartitionSpec) -> int:
    """How many parts the leading axis has under this spec."""
    axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def local_shards(mesh: Mesh, spec: PartitionSpec) -> list[int]:
    """Which parts of the leading axis this process must supply.

    Derived from the sharding and not from the process index, which is wrong as soon as a model
    axis spans processes.
    """
    count = num_shards(mesh, spec)
    indices = NamedSharding(mesh, spec).addressable_devices_indices_map((count,)).values()
    return sorted({_rows(index).indices(count)[0] for index in indices})


def _rows(index: tuple[slice, ...] | None) -> slice:
    assert index is not None, "JAX gives None for devices of other processes only"
    return index[0]


def make_global_arrays(local: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Turns host arrays that hold the local shards into global arrays over the mesh."""
    count, shards = num_shards(mesh, spec), local_shards(mesh, spec)
    sharding = NamedSharding(mesh, spec)

    def place(x: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            return x[[shards.index(g) for g in range(*_rows(index).indices(count))]]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, read)

    return jax.tree.map(place, local)


def make_replicated_arrays(tree: Any, mesh: Mesh) -> Any:
    """Puts host arrays that all processes hold alike on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        tree,
    )


def shapes(local: Any, mesh: Mesh, spec: PartitionSpec | None = None) -> Any:
    """Returns shapes and shardings of what `make_global_arrays` would make.

    Without a spec they are those of `make_replicated_arrays`.

    Programs are compiled for them ahead of time, also for devices that are not there.
    """
    sharding = NamedSharding(mesh, spec or PartitionSpec())

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        full = (num_shards(mesh, spec), *x.shape[1:]) if spec else x.shape
        return jax.ShapeDtypeStruct(full, x.dtype, sharding=sharding)

    return jax.tree.map(shape, local)
