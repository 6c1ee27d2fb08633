"""Options of a config: each is declared beside the code that reads it, with meaning and range."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pixelrec_jax.system.errors import UserError, nearest, nearest_key

_FLOAT32 = 3.4028234663852886e38  # the largest finite float32


class Range(Protocol):
    """The values that an option takes."""

    def fault(self, value: Any) -> str:
        """Returns the fault of a value, as in "=0; expected 1 or more"; "" if it is allowed."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `least` to `most`, which by default is the largest int32 of devices."""

    least: int = 1
    most: int = 2**31 - 1

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if type(value) is int and value > self.most:
            return f"={value!r}; expected at most {self.most}"
        if type(value) is int and value >= self.least:  # a bool is an int in Python
            return ""
        return f"={value!r}; expected {self.least} or more (a whole number)"


@dataclasses.dataclass(frozen=True)
class Number:
    """Numbers within float32, of at least `least`, above `above` and below `below`."""

    least: float | None = None
    above: float | None = None
    below: float | None = None

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"={value!r}; expected a finite number"
        if abs(value) > _FLOAT32:
            return f"={value!r}; expected at most {_FLOAT32:.1e}, the largest number of a device"
        if (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        ):
            return ""
        bounds = [] if self.above is None else [f"more than {self.above}"]
        if self.least is not None:
            bounds.append(
                f"{self.least} or more" if self.below is None else f"at least {self.least}"
            )
        if self.below is not None:
            bounds.append(f"less than {self.below}")
        return f"={value!r}; expected {' and '.join(bounds)}"


@dataclasses.dataclass(frozen=True)
class Wholes:
    """Tuples of whole numbers of 1 or more; the empty tuple only if `may_be_empty`."""

    may_be_empty: bool = False

    def fault(self, value: Any) -> str:
        """See `Range`."""
        sequence = isinstance(value, Sequence) and not isinstance(value, str)
        if not sequence or any(Whole(1).fault(x) for x in value):
            return f"={value!r}; expected whole numbers from 1, as in (1, 4)"
        if not value and not self.may_be_empty:
            return " is empty; give at least one number, as in (1, 4)"
        return ""


@dataclasses.dataclass(init=False)
class OneOf:
    """One of the given words."""

    words: tuple[str, ...]

    def __init__(self, *words: str):
        self.words = words

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if value in self.words:
            return ""
        *others, last = self.words
        choice = f"{', '.join(others)} or {last}" if others else last
        return f"={value!r}; expected {choice}"


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def fault(self, value: Any) -> str:
        """See `Range`."""
        return "" if isinstance(value, bool) else f"={value!r}; expected True or False"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text, including the empty one."""

    def fault(self, value: Any) -> str:
        """See `Range`."""
        return "" if isinstance(value, str) else f"={value!r}; expected text"


@dataclasses.dataclass(frozen=True)
class Words:
    """Words, in a tuple or as one text; `example` is such a tuple."""

    example: tuple[str, ...]

    def fault(self, value: Any) -> str:
        """See `Range`."""
        words = [value] if isinstance(value, str) else value
        if isinstance(words, Sequence) and all(isinstance(word, str) for word in words):
            return ""
        return f"={value!r}; expected words, as in {self.example}"


# What another value changes in a run that continues: its result; only the report on it; only how
# long it trains; only the rounding of sums; or nothing. All but the result may change.
Changes = Literal["result", "report", "length", "rounding", "nothing"]


@dataclasses.dataclass(frozen=True)
class Option:
    """The meaning and range of an option.

    Attributes:
      meaning: one line for the reader of a config.
      range: the values that it takes; None if other code checks the value.
      changes: what another value changes in a run that continues.
    """

    meaning: str
    range: Range | None
    changes: Changes = "result"

    def field(self, default: Any = dataclasses.MISSING) -> Any:
        """Returns a dataclass field that declares this option, for example of a Flax module.

        Its type is that of the field's annotation, as for `dataclasses.field`.
        """
        return dataclasses.field(default=default, metadata={"option": self})


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config that has a default.

    Attributes:
      default: the value that is the same for all models of the paper.
      meaning, range, changes: as in `Option`.
    """

    default: Any
    meaning: str
    range: Range | None
    changes: Changes = "result"

    @property
    def option(self) -> Option:
        """The key without its default."""
        return Option(self.meaning, self.range, self.changes)


DTYPE = Option(
    "type of activations; parameters and losses are float32", OneOf("float32", "bfloat16")
)


def options_of(declaring: type) -> dict[str, Option]:
    """Returns the options that the fields of a dataclass declare, by name."""
    assert dataclasses.is_dataclass(declaring)
    return {
        field.name: field.metadata["option"]
        for field in dataclasses.fields(declaring)
        if "option" in field.metadata
    }


def keys_of(taker: Callable[..., Any]) -> dict[str, Key]:
    """Returns the keys that a function or class takes: its keyword-only arguments, by name.

    Each is annotated with its option and has a default, as `count: Annotated[int, Option(..)] = 1`.
    """
    keys = {}
    for argument in inspect.signature(taker).parameters.values():
        if argument.kind is inspect.Parameter.KEYWORD_ONLY:
            notes = getattr(argument.annotation, "__metadata__", ())
            options = [note for note in notes if isinstance(note, Option)]
            assert options, f"{taker} takes {argument.name}, which is not annotated with an Option"
            assert argument.default is not argument.empty, f"{taker}: {argument.name}: no default"
            (option,) = options
            keys[argument.name] = Key(
                argument.default, option.meaning, option.range, option.changes
            )
    return keys


def keys_of_chosen(
    section: str, name: str, registry: Mapping[str, Callable[..., Any]]
) -> dict[str, Key]:
    """Returns the keys that the entry of a registry takes that `section.name` of a config names.

    Raises:
      UserError: the registry does not have the name.
    """
    if name not in registry:
        raise UserError(f"unknown {section}.name={name!r}{nearest(name, registry)}")
    return keys_of(registry[name])


def check_options(values: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Checks the values of a config, given by dotted key.

    Raises:
      UserError: a key is not among the options, or a value is outside its range.
    """
    for key, value in values.items():
        if key not in options:
            raise UserError(f"the config has no key {key!r}{nearest_key(key, options)}")
        allowed = options[key].range
        if allowed is not None and (fault := allowed.fault(value)):
            raise UserError(f"{key}{fault}")


def check_present(values: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Raises `UserError` if values of a config by dotted key lack a key that they need."""
    if missing := [key for key in needed if key not in values]:
        raise UserError(
            f"the config lacks {', '.join(missing)}; it may come from another version: make it "
            "anew with --config=pixelrec:words, in a new workdir"
        )
