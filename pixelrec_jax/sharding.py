"""The device mesh, where parameters live on it, and how host batches become global arrays."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # the leading axis G of a training batch
ROWS = PartitionSpec(AXES)  # rows of the catalogue, over every device

# The first pattern that a parameter's "a/b/c" path matches decides; every one must match.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Tables of items and users, the largest parameters of models on ids, by columns: they divide
    # evenly whatever their number of rows, and lookups and steps along a graph stay in a column.
    # Not over "tensor", too: with data, fsdp and tensor all above 1, XLA (jax 0.10.2) then compiles
    # a step that gives another loss (tests/test_train.py compares such a mesh with one device).
    (r"(^|/)table$", PartitionSpec(None, "fsdp")),
    (".*", PartitionSpec()),
)


def build_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices (default: all) in a mesh data, fsdp, tensor; data=-1 takes what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    fixed = mesh.fsdp * mesh.tensor
    data = count // max(fixed, 1) if mesh.data == -1 else mesh.data
    if min(data, mesh.fsdp, mesh.tensor) < 1 or data * fixed != count:
        raise UserError(
            f"mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not cover the "
            f"{count} devices; their product must be {count} (data=-1 takes what is left)"
        )
    # Automatic axes: the compiler propagates shardings from the parameters and the batch.
    return jax.make_mesh(
        (data, mesh.fsdp, mesh.tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def infer_shardings(
    tree: Any, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = PARAMETER_RULES
) -> Any:
    """Returns a NamedSharding for every leaf, by the first rule that its path matches.

    Works on anything that contains parameter paths, such as optimizer moments: a rule is searched
    in the whole path. Scalars are replicated.

    Raises:
      UserError: a leaf that no rule covers, or that does not divide as its rule says.
    """

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        for pattern, spec in rules:
            if re.search(pattern, name):
                return _checked(NamedSharding(mesh, spec), name, leaf.shape)
        raise UserError(f"no sharding rule covers the parameter {name} {leaf.shape}; add one")

    return jax.tree_util.tree_map_with_path(choose, tree)


def _checked(sharding: NamedSharding, name: str, shape: tuple[int, ...]) -> NamedSharding:
    for size, axes in zip(shape, sharding.spec, strict=False):
        parts = num_shards(sharding.mesh, PartitionSpec(axes)) if axes else 1
        if size % parts:
            raise UserError(
                f"{name} {list(shape)} does not divide into {parts} equal parts; choose a width "
                f"that is a multiple of {parts} (mesh.fsdp)"
            )
    return sharding


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
    return sorted({index[0].indices(count)[0] for index in indices})


def to_global(local: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Turns host arrays that hold the local shards into global arrays over the mesh."""
    count, shards = num_shards(mesh, spec), local_shards(mesh, spec)
    sharding = NamedSharding(mesh, spec)

    def place(x: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            return x[[shards.index(g) for g in range(*index[0].indices(count))]]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, read)

    return jax.tree.map(place, local)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts host arrays that all processes hold alike on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        tree,
    )


def shapes(local: Any, mesh: Mesh, spec: PartitionSpec | None = None) -> Any:
    """Returns shapes and shardings of what `to_global`, or `replicate` without a spec, would make.

    Programs are compiled for them ahead of time, also for devices that are not there.
    """
    sharding = NamedSharding(mesh, spec or PartitionSpec())

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        full = (num_shards(mesh, spec), *x.shape[1:]) if spec else x.shape
        return jax.ShapeDtypeStruct(full, x.dtype, sharding=sharding)

    return jax.tree.map(shape, local)
