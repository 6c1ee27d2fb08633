"""Declarative port of weights: patterns say where each source tensor goes and how it is turned."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from pixelrec_jax.errors import UserError

Transform = Literal["same", "transpose", "patchify"]


@dataclass(frozen=True)
class Rule:
    """Sends source names that fully match `pattern` to the path `target`; None ignores them.

    `target` may use the groups of the pattern, as in "block_\\1/query/kernel".
    """

    pattern: str
    target: str | None
    transform: Transform = "same"


_DIMENSIONS = {"transpose": 2, "patchify": 4}  # of the source; others do not fit the target


def _transform(array: np.ndarray, transform: Transform) -> np.ndarray:
    match transform:
        case "same":
            return array
        case "transpose":  # PyTorch Linear [out, in] -> Flax Dense [in, out]
            return array.T
        case "patchify":  # convolution [C, 3, p, p] -> Dense over flattened patches [p * p * 3, C]
            return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


def port(
    source: Mapping[str, np.ndarray], rules: Sequence[Rule], template: Mapping, *, origin: str
) -> dict:
    """Returns a tree like `template` (nested dict of arrays or shapes) filled from `source`.

    Raises:
      UserError: one error that lists every source tensor without a rule, every shape that does not
        fit and every target left empty.
    """
    targets = {"/".join(path): leaf for path, leaf in flatten_dict(template).items()}
    filled: dict[str, np.ndarray] = {}
    problems = []
    for name, array in source.items():
        rule = next((r for r in rules if re.fullmatch(r.pattern, name)), None)
        if rule is None:
            problems.append(f"{name} {tuple(array.shape)} is unknown")
            continue
        if rule.target is None:
            continue
        path = re.fullmatch(rule.pattern, name).expand(rule.target)
        if path not in targets:
            problems.append(f"{name} goes to {path}, which the model lacks")
            continue
        if path in filled:
            problems.append(f"{name} goes to {path}, which another tensor fills already")
            continue
        value = np.asarray(array, np.float32)
        if value.ndim == _DIMENSIONS.get(rule.transform, value.ndim):
            value = _transform(value, rule.transform)
        if value.shape != tuple(targets[path].shape):
            expected = tuple(targets[path].shape)
            problems.append(f"{name} gives {path} of shape {value.shape} instead of {expected}")
        filled[path] = value
    problems += [f"nothing fills {path}" for path in targets if path not in filled]
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8} more" if problems[8:] else ""
        )
        raise UserError(f"{origin} does not fit the model: {shown}")
    return unflatten_dict({tuple(path.split("/")): value for path, value in filled.items()})


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); fetch it again"
        ) from error


def locate(weights: str) -> Path:
    """Finds a safetensors file: a local file or folder, or `owner/name[@revision]` on the hub.

    Raises:
      UserError: neither is there.
    """
    path = epath.Path(weights)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.exists():
        return Path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", weights):
        return _download(weights)
    raise UserError(
        f"item.weights={weights!r}: no such file; give a .safetensors file, a folder with "
        "model.safetensors, owner/name of the Hugging Face hub, or '' for random weights"
    )


def _download(weights: str) -> Path:
    # Imported here: only this path needs it, and it is slow to import.
    from huggingface_hub import hf_hub_download

    repository, _, revision = weights.partition("@")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision or None))
    # Whatever the hub client raises (network, missing file, access), the remedy is the same.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"item.weights={weights!r} could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check the name and the network, name a revision "
            "that has model.safetensors as owner/name@revision, or give a local file"
        ) from error
