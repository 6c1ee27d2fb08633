"""Declarative mapping of weights, both ways: which source tensor is which parameter.

A rule names a source tensor and a parameter, with placeholders for numbers: "layers.{n}.fc.weight"
is "block_{n}/fc/kernel", transposed. The same table reads a checkpoint and writes one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pixelrec_jax.system.errors import UserError
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
    return x.transpose(2, 3, 1, 0).reshape(prod(x.shape[1:]), len(x)) if x.ndim == 4 else x


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
class WeightMapping:
    """How the checkpoints of one origin are named.

    Attributes:
      name: "huggingface", "torchvision", "openai", "timm" or "efficientnet-pytorch".
      rules: the first one that matches a tensor decides.
      prefixes: what some files put before every name; it is taken off.
      written_prefix: what is put before every name that is written, as most files have it.
      ignored: regular expressions of whole names that hold nothing the model uses.
    """

    name: str
    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    written_prefix: str = ""
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
    mappings: Sequence[WeightMapping],
    template: Mapping,
    *,
    origin: str,
    optional: Sequence[str] = (),
) -> dict:
    """Returns a tree like `template` (nested dict of arrays or shapes) filled from `source`.

    Args:
      source: tensors by name.
      mappings: the one that knows most of the names is used.
      template: what must be filled, exactly.
      origin: what to call the source in errors.
      optional: first parts of targets that the model may lack, such as an unused pooling.

    Raises:
      UserError: one error that counts and lists every source tensor without a rule, every shape
        that does not fit and every target left empty; one pattern stands for names that differ in
        numbers only.
    """
    mapping = max(mappings, key=lambda p: sum(p.find(name) is not None for name in source))
    targets = {"/".join(path): tuple(x.shape) for path, x in flatten_dict(template).items()}
    filled: dict[str, np.ndarray | None] = {}
    problems = []
    for name, array in source.items():
        found = mapping.find(name)
        if found is None:
            if not mapping.ignores(name):
                problems.append(("tensor{s} unknown", name, f"{array.shape}"))
            continue
        rule, numbers = found
        for target, part in zip(rule.targets, _split(array, len(rule.targets)), strict=True):
            path = target.format(**numbers)
            if path not in targets:
                if path.split("/")[0] not in optional:
                    problems.append(("tensor{s} for what the model lacks", name, f"to {path}"))
            elif path in filled:
                problems.append(("tensor{s} for what another one fills", name, f"to {path}"))
            else:
                value = rule.transform.read(part, targets[path])
                fits = value.shape == targets[path]
                # Only what fits is made float32: the shape of a file may claim any size.
                filled[path] = np.asarray(value, np.float32) if fits else None
                if not fits:
                    detail = f"to {path} of {value.shape} instead of {targets[path]}"
                    problems.append(("tensor{s} of another shape", name, detail))
    problems += [
        ("parameter{s} unfilled", path, f"{shape}")
        for path, shape in targets.items()
        if path not in filled
    ]
    if problems:
        counts, names = _summary(problems)
        raise UserError(
            f"{origin} does not fit the model: {counts} (is it another architecture?); {names}"
        )
    return unflatten_dict({tuple(path.split("/")): value for path, value in filled.items()})


def write_weights(tree: Mapping, mapping: WeightMapping) -> dict[str, np.ndarray]:
    """Returns the tensors of a tree by the names of `mapping`, the inverse of `read_weights`.

    Raises:
      UserError: the mapping cannot name some of the parameters.
    """
    flat = {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}
    parts: dict[str, dict[int, np.ndarray]] = {}
    unnamed = []
    for path, value in flat.items():
        found = _find_target(mapping, path)
        if found is None:
            unnamed.append(("parameter{s} without a name", path, f"{value.shape}"))
            continue
        rule, part, numbers = found
        name = mapping.written_prefix + rule.source.format(**numbers)
        parts.setdefault(name, {})[part] = rule.transform.write(value)
    if unnamed:
        counts, names = _summary(unnamed)
        raise UserError(f"cannot write {mapping.name} names: {counts}; {names}")
    return {
        name: np.ascontiguousarray(np.concatenate([by_part[n] for n in sorted(by_part)]))
        if len(by_part) > 1
        else np.ascontiguousarray(by_part[0])
        for name, by_part in parts.items()
    }


def _find_target(mapping: WeightMapping, path: str) -> tuple[Rule, int, dict[str, str]] | None:
    for rule in mapping.rules:
        for part, pattern in enumerate(rule.target_patterns):
            if match := pattern.fullmatch(path):
                return rule, part, match.groupdict()
    return None


def _split(array: np.ndarray, parts: int) -> list[np.ndarray]:
    if parts == 1 or array.ndim == 0 or len(array) % parts:
        return [array] * parts  # of a wrong shape, which is reported
    return np.split(array, parts)


def _summary(problems: list[tuple[str, str, str]]) -> tuple[str, str]:
    """How many problems of each kind there are, and which.

    Args:
      problems: a kind with {s} for its plural, a name and details, left out where one pattern
        stands for several names that differ in numbers only.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for kind, name, detail in problems:
        same = kinds.setdefault(kind, {}).setdefault(re.sub(r"\d+", "*", name), [])
        same.append(f"{name} {detail}")
    counts, lists = [], []
    for kind, patterns in kinds.items():
        count = sum(map(len, patterns.values()))
        kind = kind.format(s="" if count == 1 else "s")
        counts.append(f"{count} {kind}")
        names = (
            same[0] if len(same) == 1 else f"{pattern} ({len(same)} times)"
            for pattern, same in patterns.items()
        )
        lists.append(f"{kind}: {', '.join(names)}")
    return ", ".join(counts), "; ".join(lists)
