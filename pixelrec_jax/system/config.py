"""Checks of a config that depend on the devices, and its keys as dotted names."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from pixelrec_jax.system.errors import UserError, nearest_key


def check_keys(keys: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raises `UserError` for a dotted key that a config does not have."""
    for key in keys:
        if key not in known:
            raise UserError(f"the config has no key {key!r}{nearest_key(key, known)}") from None


def mesh_shape(mesh: ConfigDict, devices: int, *, slices: int = 1) -> tuple[int, int, int]:
    """Returns the sizes of the mesh axes data, fsdp and tensor; data=-1 takes the other devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or to that of a slice.
    """
    fixed = mesh.fsdp * mesh.tensor
    data = devices // max(fixed, 1) if mesh.data == -1 else mesh.data
    if min(data, mesh.fsdp, mesh.tensor) < 1 or data * fixed != devices:
        raise UserError(
            f"mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not cover the "
            f"{devices} devices; their product must be {devices} (data=-1 takes the rest)"
        )
    if data % slices:
        raise UserError(
            f"mesh fsdp={mesh.fsdp} tensor={mesh.tensor} does not fit {devices // slices} devices, "
            f"one of {slices} slices; their product must divide it"
        )
    return data, mesh.fsdp, mesh.tensor


def check_batch_size(batch_size: int, shards: int, microbatches: int = 1) -> None:
    """Raises `UserError` if a global batch does not divide into equal shards and microbatches."""
    pieces = shards * microbatches
    if batch_size % pieces:
        each = f" with train.microbatches={microbatches} each" if microbatches > 1 else ""
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by the {shards} data shards of the "
            f"device mesh{each}; choose a multiple of {pieces}"
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted key, as in "optim.lr"."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
