"""Freezing by partition: only trainable parameters are differentiated, stored twice and updated."""

import re
from collections.abc import Callable, Sequence

from flax.traverse_util import flatten_dict, unflatten_dict

from pixelrec_jax.errors import UserError, nearest

Params = dict


def trainable_blocks(option: str | Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Resolves `item.trainable` to block names, in order from pixels to tokens.

    Args:
      option: "all", "none", "last:n" (the last n blocks; a final norm is not counted and comes
        along), or block names (one string may hold several, by commas).
      blocks: the encoder's blocks.

    Raises:
      UserError: an unknown block or a malformed option.
    """
    if option == "all":
        return tuple(blocks)
    if option == "none":
        return ()
    if isinstance(option, str) and (match := re.fullmatch(r"last:(\d+)", option)):
        counted = [name for name in blocks if name != "norm"]
        if not 1 <= int(match[1]) <= len(counted):
            raise UserError(f"item.trainable={option!r}: the encoder has {len(counted)} blocks")
        return tuple(blocks[blocks.index(counted[-int(match[1])]) :])
    names = option.split(",") if isinstance(option, str) else list(option)
    for name in names:
        if name not in blocks:
            known = [*blocks, "all", "none", "last:2"]
            raise UserError(f"item.trainable: unknown block {name!r}{nearest(name, known)}")
    return tuple(name for name in blocks if name in names)


def partition(params: Params, is_trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits a nested dict into (trainable, frozen) by "a/b/c" path; `merge` is its inverse."""
    flat = flatten_dict(params)
    trainable = {path: leaf for path, leaf in flat.items() if is_trainable("/".join(path))}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """Joins two partitions of one tree."""
    return unflatten_dict({**flatten_dict(trainable), **flatten_dict(frozen)})
