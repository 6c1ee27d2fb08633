"""Declarative mappings between the tensors of published checkpoints and the parameters of a model.

A rule names a source tensor and a parameter, with placeholders for numbers: "layers.{n}.fc.weight"
is "block_{n}/fc/kernel", transposed. The same rules read and write a checkpoint.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.problems import summary
from pixelrec_jax.weights.transforms import LINEAR, SAME, Transform


@dataclass(frozen=True)
class Rule:
    """Maps the tensor `source` to the parameter `target`.

    Both may hold placeholders such as {n}, which stand for the same number on both sides. Several
    targets split the source's first axis evenly, as in a fused query, key and value.
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
        """The pattern that matches the names of this rule's sources."""
        return _pattern(self.source)

    @cached_property
    def target_patterns(self) -> tuple[re.Pattern, ...]:
        """The patterns that match the paths of this rule's targets."""
        return tuple(map(_pattern, self.targets))


def _pattern(template: str) -> re.Pattern:
    tokens = re.split(r"\{(\w+)\}", template)  # literals and placeholders alternate
    return re.compile(
        "".join(rf"(?P<{x}>\d+)" if n % 2 else re.escape(x) for n, x in enumerate(tokens))
    )


@dataclass(frozen=True)
class WeightMapping:
    """The rules for the checkpoints of one origin.

    Attributes:
      name: "huggingface", "torchvision", "openai", "timm" or "efficientnet-pytorch".
      rules: the rules; the first one that matches a tensor applies.
      prefixes: prefixes of all names in some files, which are removed.
      written_prefix: the prefix of every written name, as most files have it.
      ignored: regular expressions of whole names that the model does not use.
    """

    name: str
    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    written_prefix: str = ""
    ignored: tuple[str, ...] = ()

    def find(self, name: str) -> tuple[Rule, dict[str, str]] | None:
        """Returns the rule for a source name and the numbers of its placeholders, or None."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for rule in self.rules:
            if match := rule.source_pattern.fullmatch(name):
                return rule, match.groupdict()
        return None

    def ignores(self, name: str) -> bool:
        """Returns whether a source name is known not to be used."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the rules for weight and bias of a linear layer."""
    return (
        Rule(f"{source}.weight", f"{target}/kernel", LINEAR),
        Rule(f"{source}.bias", f"{target}/bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the rules for scale and bias of a layer norm."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


_MOST_PREFIXES = 5  # before all names
TRACKED = r".*\.num_batches_tracked"  # a counter in PyTorch's batch norm, for `ignored`


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Returns the rules for scale, bias and running statistics of a batch norm."""
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
      mappings: mappings to choose from; the one that knows most of the names is used.
      template: the parameters that must be filled, exactly.
      origin: the name of the source in errors.
      optional: top-level names of targets that the model may lack, such as an unused pooling.

    Raises:
      UserError: the source does not fit. Tensors without a rule, wrong shapes and unfilled
        parameters are counted and listed, as one pattern if names differ only in numbers.
    """
    source, mapping = _unwrapped(source, mappings)
    targets = {"/".join(path): tuple(x.shape) for path, x in flatten_dict(template).items()}
    filled: dict[str, np.ndarray | None] = {}
    problems, broken = [], []
    for name, array in source.items():
        found = mapping.find(name)
        if found is None:
            if not mapping.ignores(name):
                problems.append(("tensor{s} unknown", name, f"{array.shape}"))
            continue
        rule, numbers = found
        for target, piece in zip(rule.targets, _split(array, len(rule.targets)), strict=True):
            path = target.format(**numbers)
            if path not in targets:
                if path.split("/")[0] not in optional:
                    problems.append(("tensor{s} for what the model lacks", name, f"to {path}"))
            elif path in filled:
                problems.append(("tensor{s} for what another one fills", name, f"to {path}"))
            else:
                value = rule.transform.read(piece, targets[path])
                filled[path] = None
                if value.shape != targets[path]:
                    detail = f"to {path} of {value.shape} instead of {targets[path]}"
                    problems.append(("tensor{s} of another shape", name, detail))
                    continue
                # Only a fitting tensor is made float32: a file may claim any size.
                with np.errstate(over="ignore"):  # float64 beyond float32 is told below
                    filled[path] = single = np.asarray(value, np.float32)
                if not np.isfinite(single).all():
                    broken.append(name)
    problems += [
        ("parameter{s} unfilled", path, f"{shape}")
        for path, shape in targets.items()
        if path not in filled
    ]
    if problems:
        counts, names = summary(problems)
        raise UserError(
            f"{origin} does not fit the model: {counts} (give weights of its architecture); {names}"
        )
    if broken:
        raise UserError(
            f"{origin} holds numbers that are not finite in float32, in {len(broken):,} tensors, "
            f"such as {broken[0]}; fetch it again, or give other weights"
        )
    return unflatten_dict({tuple(path.split("/")): value for path, value in filled.items()})


def _unwrapped(
    source: Mapping[str, np.ndarray], mappings: Sequence[WeightMapping]
) -> tuple[Mapping[str, np.ndarray], WeightMapping]:
    """Returns the tensors and the mapping that knows most of their names.

    Trainers put "module.", "_orig_mod." or "model." before all names: what all share comes off,
    part by part, if more names are known then.
    """
    forms = [source]
    while len(forms) < _MOST_PREFIXES:
        heads = {name.partition(".")[0::2] for name in forms[-1]}
        if len({head for head, _ in heads}) != 1 or not all(rest for _, rest in heads):
            break
        forms.append({name.partition(".")[2]: tensor for name, tensor in forms[-1].items()})
    pairs = [(form, mapping) for form in forms for mapping in mappings]
    return max(pairs, key=lambda pair: sum(pair[1].find(name) is not None for name in pair[0]))


def write_weights(tree: Mapping, mapping: WeightMapping) -> dict[str, np.ndarray]:
    """Returns the tensors of a tree by the names of `mapping`; the inverse of `read_weights`.

    Raises:
      UserError: the mapping has no rule for some parameters.
    """
    flat = {"/".join(path): np.asarray(x) for path, x in flatten_dict(tree).items()}
    pieces: dict[str, dict[int, np.ndarray]] = {}
    unnamed = []
    for path, value in flat.items():
        found = _find_target(mapping, path)
        if found is None:
            unnamed.append(("parameter{s} without a name", path, f"{value.shape}"))
            continue
        rule, position, numbers = found
        name = mapping.written_prefix + rule.source.format(**numbers)
        pieces.setdefault(name, {})[position] = rule.transform.write(value)
    if unnamed:
        counts, names = summary(unnamed)
        problem = f"cannot write {mapping.name} names: {counts}; {names}"
        raise UserError(f"{problem}; choose other names with --names")
    return {
        name: np.ascontiguousarray(np.concatenate([x for _, x in sorted(by_position.items())]))
        if len(by_position) > 1
        else np.ascontiguousarray(by_position[0])
        for name, by_position in pieces.items()
    }


def _find_target(mapping: WeightMapping, path: str) -> tuple[Rule, int, dict[str, str]] | None:
    """Returns the rule for a parameter, the position among its targets, and the numbers."""
    for rule in mapping.rules:
        for position, pattern in enumerate(rule.target_patterns):
            if match := pattern.fullmatch(path):
                return rule, position, match.groupdict()
    return None


def _split(array: np.ndarray, count: int) -> list[np.ndarray]:
    if count == 1 or array.ndim == 0 or len(array) % count:
        return [array] * count  # their wrong shape is reported
    return np.split(array, count)
