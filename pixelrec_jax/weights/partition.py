"""Freezing by partition: only trainable parameters have gradients, moments and updates."""

from collections.abc import Callable

from flax.traverse_util import flatten_dict, unflatten_dict

Params = dict


def partition(params: Params, is_trainable: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits a nested dict into (trainable, frozen) by "a/b/c" path; `merge` is its inverse."""
    flat = flatten_dict(params)
    trainable = {path: leaf for path, leaf in flat.items() if is_trainable("/".join(path))}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(first: Params, second: Params) -> Params:
    """Returns the union of two trees; where both have a leaf, the second one's is taken."""
    return unflatten_dict({**flatten_dict(first), **flatten_dict(second)})
