"""Options of a config: what each one means and which values it takes, declared where it lives."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pixelrec_jax.system.errors import UserError, nearest


class Range(Protocol):
    """The values that an option takes."""

    def fault(self, value: Any) -> str:
        """Returns what is wrong with a value, as in "=0; expected 1 or more", "" for nothing."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `least`."""

    least: int = 1

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if type(value) is int and value >= self.least:  # a bool is an int in Python
            return ""
        return f"={value!r}; expected {self.least} or more (a whole number)"


@dataclasses.dataclass(frozen=True)
class Number:
    """Finite numbers from `least` or more than `above`, and less than `below`."""

    least: float | None = None
    above: float | None = None
    below: float | None = None

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"={value!r}; expected a finite number"
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
    """Tuples of whole numbers from 1, the empty one only if `may_be_empty`."""

    may_be_empty: bool = False

    def fault(self, value: Any) -> str:
        """See `Range`."""
        sequence = isinstance(value, Sequence) and not isinstance(value, str)
        if not sequence or any(Whole(1).fault(x) for x in value):
            return f"={value!r}; expected whole numbers from 1, as in (1, 4)"
        if not value and not self.may_be_empty:
            return " is empty; give at least one number, as in (1, 4)"
        return ""


class OneOf:
    """One of some words."""

    def __init__(self, *words: str):
        self.words = words

    def fault(self, value: Any) -> str:
        """See `Range`."""
        if value in self.words:
            return ""
        *others, last = self.words
        choice = f"{', '.join(others)} or {last}" if others else last
        return f"={value!r}; expected {choice}"


class Flag:
    """True or False."""

    def fault(self, value: Any) -> str:
        """See `Range`."""
        return "" if isinstance(value, bool) else f"={value!r}; expected True or False"


class Text:
    """Any text, the empty one included."""

    def fault(self, value: Any) -> str:
        """See `Range`."""
        return "" if isinstance(value, str) else f"={value!r}; expected text"


@dataclasses.dataclass(frozen=True)
class Option:
    """What an option means and which values it takes.

    Attributes:
      meaning: a line for the reader of a config.
      range: None where the range depends on more than the value, and its reader checks it.
    """

    meaning: str
    range: Range | None

    def field(self, default: Any = dataclasses.MISSING) -> Any:
        """Returns a field of a dataclass, such as a Flax module, that declares this option."""
        return dataclasses.field(default=default, metadata={"option": self})


DTYPE = Option(
    "what is computed in; parameters and losses are float32", OneOf("float32", "bfloat16")
)


def options_of(declaring: type) -> dict[str, Option]:
    """Returns the options that the fields of a dataclass declare, by name."""
    assert dataclasses.is_dataclass(declaring)
    return {
        field.name: field.metadata["option"]
        for field in dataclasses.fields(declaring)
        if "option" in field.metadata
    }


def check_options(values: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Checks values of a config by dotted key.

    Raises:
      UserError: a key is not among the options, or a value is outside its range.
    """
    for key, value in values.items():
        if key not in options:
            raise UserError(f"the config has no key {key!r}{nearest(key, options)}")
        allowed = options[key].range
        if allowed is not None and (fault := allowed.fault(value)):
            raise UserError(f"{key}{fault}")
