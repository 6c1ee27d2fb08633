"""Declarative port of weights, both ways: which source tensor is which parameter, how it is turned.

A rule names a source tensor and a parameter, with placeholders for numbers: "layers.{n}.fc.weight"
is "block_{n}/fc/kernel", transposed. The same table reads a checkpoint and writes one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pixelrec_jax.errors import UserError
from pixelrec_jax.weights.resize import resize_grid


@dataclass(frozen=True)
class Transform:
    """How a source tensor becomes a parameter, and back.

    Attributes:
      read: (source tensor, shape of the parameter) -> parameter. A tensor it cannot turn comes back
        as it is; its shape is then reported.
      write: parameter -> source tensor.
    """

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _permute(*axes: int) -> Transform:
    """Transposition of a source with `len(axes)` dimensions."""
    back = np.argsort(axes)
    return Transform(
        lambda x, shape: x.transpose(axes) if x.ndim == len(axes) else x,
        lambda x: x.transpose(back),
    )


def _read_patches(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]) if x.ndim == 4 else x


def _write_patches(x: np.ndarray) -> np.ndarray:
    patch = isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


def _read_pointwise(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x[:, :, 0, 0].T if x.ndim == 4 and x.shape[2:] == (1, 1) else x


def _read_token(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x[0, 0] if x.shape[:-1] == (1, 1) else x


def _read_position(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    x = x[0] if x.ndim == 3 and len(x) == 1 else x
    return resize_grid(x, shape[0], before=1) if x.ndim == 2 else x


def _read_relative(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return resize_grid(x, shape[0], after=3) if x.ndim == 2 else x


SAME = Transform(lambda x, shape: x, lambda x: x)
LINEAR = _permute(1, 0)  # PyTorch [out, in] <-> Flax Dense [in, out]
CONV = _permute(2, 3, 1, 0)  # [out, in, h, w] <-> [h, w, in, out]
POINTWISE = Transform(_read_pointwise, lambda x: x.T[:, :, None, None])  # 1 x 1 <-> Dense
PATCHES = Transform(_read_patches, _write_patches)  # [C, 3, p, p] <-> Dense [p * p * 3, C]
TOKEN = Transform(_read_token, lambda x: x[None, None])  # [1, 1, C] <-> [C]
# Class token first; the grid is interpolated to the resolution of the model.
POSITION = Transform(_read_position, lambda x: x)  # [1 + g * g, C]
BATCHED_POSITION = Transform(_read_position, lambda x: x[None])  # [1, 1 + g * g, C]
# Biases of relative positions, then those of the class token; the grid of offsets is interpolated.
RELATIVE = Transform(_read_relative, lambda x: x)  # [(2 * g - 1)^2 + 3, heads]


@dataclass(frozen=True)
class Rule:
    """Says that the tensor `source` is the parameter `target`.

    Both may hold placeholders such as {n}, which stand for the same number on both sides. Several
    targets are equal parts of the source's first axis, as in a fused query, key and value.
    """

    source: str
    target: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @cached_property
    def source_pattern(self) -> re.Pattern:
        """Matches the names of this rule's sources."""
        return _pattern(self.source)

    @cached_property
    def target_patterns(self) -> tuple[re.Pattern, ...]:
        """Match the paths of this rule's targets."""
        return tuple(map(_pattern, self.targets))


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)  # literals and names take turns
    return re.compile(
        "".join(rf"(?P<{p}>\d+)" if n % 2 else re.escape(p) for n, p in enumerate(parts))
    )


@dataclass(frozen=True)
class Port:
    """How the checkpoints of one origin are named.

    Attributes:
      name: "huggingface", "torchvision", "openai" or "timm".
      rules: the first one that matches a tensor decides.
      prefixes: what some files put before every name; it is taken off.
      ignored: regular expressions of whole names that hold nothing the model uses.
    """

    name: str
    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def find(self, name: str) -> tuple[Rule, dict[str, str]] | None:
        """Returns the rule for a source name and the numbers of its placeholders."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for rule in self.rules:
            if match := rule.source_pattern.fullmatch(name):
                return rule, match.groupdict()
        return None

    def ignores(self, name: str) -> bool:
        """Whether a source name is known to hold nothing that is used."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer."""
    return (
        Rule(f"{source}.weight", f"{target}/kernel", LINEAR),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Scale and bias of a layer norm."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


TRACKED = r".*\.num_batches_tracked"  # PyTorch's batch norm counts; to be ignored


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Scale, bias and running statistics of a batch norm."""
    return (
        *norm(source, target),
        Rule(f"{source}.running_mean", f"{target}/mean"),
        Rule(f"{source}.running_var", f"{target}/var"),
    )


def read_weights(
    source: Mapping[str, np.ndarray],
    ports: Sequence[Port],
    template: Mapping,
    *,
    origin: str,
    optional: Sequence[str] = (),
) -> dict:
    """Returns a tree like `template` (nested dict of arrays or shapes) filled from `source`.

    Args:
      source: tensors by name.
      ports: the one that knows most of the names is used.
      template: what must be filled, exactly.
      origin: what to call the source in errors.
      optional: first parts of targets that the model may lack, such as an unused pooling.

    Raises:
      UserError: one error that lists every source tensor without a rule, every shape that does not
        fit and every target left empty.
    """
    port = max(ports, key=lambda p: sum(p.find(name) is not None for name in source))
    targets = {"/".join(path): tuple(x.shape) for path, x in flatten_dict(template).items()}
    filled: dict[str, np.ndarray] = {}
    problems = []
    for name, array in source.items():
        found = port.find(name)
        if found is None:
            if not port.ignores(name):
                problems.append(f"{name} {tuple(array.shape)} is unknown")
            continue
        rule, numbers = found
        for target, part in zip(rule.targets, _split(array, len(rule.targets)), strict=True):
            path = target.format(**numbers)
            if path not in targets:
                if path.split("/")[0] not in optional:
                    problems.append(f"{name} goes to {path}, which the model lacks")
            elif path in filled:
                problems.append(f"{name} goes to {path}, which another tensor fills already")
            else:
                value = filled[path] = rule.transform.read(part, targets[path])
                if value.shape != targets[path]:
                    expected = f"{value.shape} instead of {targets[path]}"
                    problems.append(f"{name} gives {path} of shape {expected}")
    problems += [f"nothing fills {path}" for path in targets if path not in filled]
    if problems:
        raise UserError(f"{origin} does not fit the model: {'; '.join(_grouped(problems))}")
    return unflatten_dict({tuple(path.split("/")): value for path, value in filled.items()})


def write_weights(tree: Mapping, port: Port) -> dict[str, np.ndarray]:
    """Returns the tensors of a tree by the names of `port`, the inverse of `read_weights`.

    Raises:
      UserError: the port cannot name some of the parameters.
    """
    flat = {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}
    parts: dict[str, dict[int, np.ndarray]] = {}
    unnamed = []
    for path, value in flat.items():
        found = _find_target(port, path)
        if found is None:
            unnamed.append(f"{path} {value.shape} has no name in it")
            continue
        rule, part, numbers = found
        parts.setdefault(rule.source.format(**numbers), {})[part] = rule.transform.write(value)
    if unnamed:
        raise UserError(f"cannot write {port.name} names: {'; '.join(_grouped(unnamed))}")
    return {
        name: np.ascontiguousarray(np.concatenate([by_part[n] for n in sorted(by_part)]))
        if len(by_part) > 1
        else np.ascontiguousarray(by_part[0])
        for name, by_part in parts.items()
    }


def _find_target(port: Port, path: str) -> tuple[Rule, int, dict[str, str]] | None:
    for rule in port.rules:
        for part, pattern in enumerate(rule.target_patterns):
            if match := pattern.fullmatch(path):
                return rule, part, match.groupdict()
    return None


def _split(array: np.ndarray, parts: int) -> list[np.ndarray]:
    array = np.asarray(array, np.float32)
    if parts == 1 or array.ndim == 0 or len(array) % parts:
        return [array] * parts  # of a wrong shape, which is reported
    return np.split(array, parts)


def _grouped(problems: list[str]) -> list[str]:
    """Puts problems that differ in a block's number only into one."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(re.sub(r"(?<=[._])\d+(?=[./ ]|$)", "*", problem), []).append(problem)
    return [
        members[0] if len(members) == 1 else f"{pattern} ({len(members)} times)"
        for pattern, members in groups.items()
    ]
