"""The device mesh, the shardings of parameters, and global arrays from host batches."""

import math
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
# The first pattern found in a parameter's "a/b/c" path gives its spec; every path must match one.
# A spec is for the last axes: [in, out] for all kernels, including those of convolutions.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # The largest parameters of id models. The module `tables` reads and updates their rows.
    (r"(^|/)table$", PartitionSpec(TABLE_SPEC[0], None)),
    # Transformers (Megatron-LM, Shoeybi et al. 2019): each device along "tensor" computes some
    # heads and hidden units; their contributions are summed after the second product.
    (rf"{_TRANSFORMER}/(query|key|value|mlp_in|feed_in)/kernel$", PartitionSpec("fsdp", "tensor")),
    (rf"{_TRANSFORMER}/(query|key|value|mlp_in|feed_in)/bias$", PartitionSpec("tensor")),
    (rf"{_TRANSFORMER}/(out|mlp_out|feed_out)/kernel$", PartitionSpec("tensor", "fsdp")),
    # The widest stages of ResNets: the same for the channels between two convolutions. In units of
    # three convolutions these are the last two, which are most of the work.
    (r"/layer[34]/unit_\d+/conv_2/conv/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"/layer[34]/unit_\d+/conv_3/conv/kernel$", PartitionSpec("tensor", "fsdp")),
    # Every other matrix is sharded only to save memory, and all-gathered before use.
    (r"(^|/)(kernel|recurrent)$", PartitionSpec("fsdp", None)),
    (r"(^|/)(bias|scale|scale_\d|\w+_bias)$", REPLICATED),
    (r"(^|/)(class_token|position|relative|mask|\w+_interests|codebook)$", REPLICATED),
    (r"(^|/)batch_stats/.*/(mean|var)$", REPLICATED),
)


def build_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh data, fsdp, tensor of the devices, by default all; data=-1 takes the rest.

    With several TPU slices, each slice holds whole groups along fsdp and tensor, so that the
    communication within layers does not cross the slower network between slices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or to that of a slice.
    """
    devices = jax.devices() if devices is None else devices
    # On GPUs, slice_index is the host's index, and groups may span hosts.
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
    """Returns a NamedSharding for every leaf, by the first rule that matches its path.

    A rule may match anywhere in the path, so that it also covers optimizer moments. Scalars are
    replicated. So is an axis that its rule cannot divide, which costs only memory; the rows of
    tables always divide (`pad_rows`).

    Args:
      tree: arrays or their shapes.
      mesh: the device mesh.
      min_size: parameters with fewer entries are not sharded over "fsdp", because sending them
        costs more than the memory they take.
      rules: as `PARAMETER_RULES`.

    Raises:
      UserError: no rule covers a leaf.
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
    """Returns `spec` extended to all axes on the left; axes that do not divide become None."""
    specs = (*(None,) * (len(shape) - len(spec)), *spec)

    def applies(size: int, axes: Any) -> bool:
        if axes is None or (small and axes == "fsdp"):
            return False
        return size % num_shards(mesh, PartitionSpec(axes)) == 0

    return PartitionSpec(
        *(axes if applies(size, axes) else None for size, axes in zip(shape, specs, strict=True))
    )


def unshard_params(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters, except tables, all-gathered along "fsdp" for the layers.

    Without this constraint the compiler may send activations instead, which are far larger.
    """
    whole = infer_shardings(params, mesh, min_size=sys.maxsize)
    return jax.lax.with_sharding_constraint(params, whole)


def replicate(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns an array, inside a compiled function, replicated on every device."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, REPLICATED))


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes on each device of arrays with these shapes and shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def num_shards(mesh: Mesh, spec: PartitionSpec) -> int:
    """Returns the number of shards of the leading axis under this spec."""
    axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def local_shards(mesh: Mesh, spec: PartitionSpec) -> list[int]:
    """Returns the indices of the shards of the leading axis that this process must supply.

    They come from the sharding and not from the process index: that would be wrong where the axis
    fsdp or tensor spans processes.
    """
    count = num_shards(mesh, spec)
    indices = NamedSharding(mesh, spec).addressable_devices_indices_map((count,)).values()
    return sorted({_rows(index).indices(count)[0] for index in indices})


def _rows(index: tuple[slice, ...] | None) -> slice:
    assert index is not None, "JAX gives None for devices of other processes only"
    return index[0]


def make_global_arrays(local: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Returns global arrays over the mesh from host arrays that hold the local shards."""
    count, shards = num_shards(mesh, spec), local_shards(mesh, spec)
    sharding = NamedSharding(mesh, spec)

    def place(x: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            return x[[shards.index(g) for g in range(*_rows(index).indices(count))]]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, read)

    return jax.tree.map(place, local)


def make_replicated_arrays(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays that are replicated on every device; all processes give the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        tree,
    )


def shapes(local: Any, mesh: Mesh, spec: PartitionSpec | None = None) -> Any:
    """Returns the shapes and shardings of the arrays that `make_global_arrays` would make.

    Without a spec they are those of `make_replicated_arrays`. Programs are compiled for them ahead
    of time, also for devices that do not exist here.
    """
    sharding = NamedSharding(mesh, spec or PartitionSpec())

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        full = (num_shards(mesh, spec), *x.shape[1:]) if spec else x.shape
        return jax.ShapeDtypeStruct(full, x.dtype, sharding=sharding)

    return jax.tree.map(shape, local)
