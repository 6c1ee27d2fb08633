"""JSON files of this program: what each holds is declared once and checked at every read.

What a file holds is declared as a `TypedDict` marked by `record`, so that it is a plain dict for
those who write and read it. Beside it stands its `Document`, which reads the file.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.files import read_bytes, write_json

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Marks a TypedDict whose declared keys are all that it may have.
record = with_config(ConfigDict(extra="forbid"))
# Marks a TypedDict with `extra_items`, the type of all further keys.
open_record = with_config(ConfigDict(extra="allow"))

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class Document(Generic[_T]):
    """A kind of JSON file.

    Attributes:
      name: the name of the file; * stands for any text.
      content: the type of what it holds: a `record`, or a type made of some.
      remedy: what to do if it is damaged; {folder} stands for the folder that it is in.
    """

    name: str
    content: type[_T]
    remedy: str

    def read(self, path: Path) -> _T:
        """Returns the content of a file.

        Raises:
          FileNotFoundError, NotADirectoryError: there is no such file.
          UserError: it cannot be read, or it does not hold what is declared.
        """
        return self.parse(self._bytes(path), path)

    def read_lines(self, path: Path) -> Iterator[tuple[bytes, _T]]:
        """Yields the lines of a file, and what each one holds.

        A killed program can leave a part of a line at the end, which is left out. Raises as `read`.
        """
        for number, line in enumerate(self._bytes(path).splitlines(keepends=True), start=1):
            if line.endswith(b"\n"):
                yield line, self.parse(line, path, line=number)

    def write(self, path: Path, content: _T) -> None:
        """Writes a file, complete or not at all."""
        write_json(path, content)

    def parse(self, text: bytes, path: Path, *, line: int | None = None) -> _T:
        """Returns the content of a file, or of one of its lines; raises `UserError` as `read`."""
        try:
            return self._adapter.validate_json(text, strict=True)
        except ValidationError as error:
            raise self.damaged(path, _fault(error), line=line) from None

    def check(self, content: Any, path: Path) -> _T:
        """Returns JSON values that a library has read from a file, checked as by `read`."""
        try:
            return self._adapter.validate_python(content, strict=True)
        except ValidationError as error:
            raise self.damaged(path, _fault(error)) from None

    def damaged(self, path: Path, fault: str, *, line: int | None = None) -> UserError:
        """Returns the error for a file that is not as it was written."""
        place = f"{path}, line {line}," if line else path
        return UserError(f"{place} {fault}; {self.remedy.format(folder=path.parent)}")

    def _bytes(self, path: Path) -> bytes:
        try:
            return read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if is_of_machine(error):
                raise
            raise self.damaged(path, f"cannot be read ({error.strerror or error})") from None

    @property
    def _adapter(self) -> TypeAdapter[_T]:
        if self not in _ADAPTERS:
            _ADAPTERS[self] = TypeAdapter(self.content)
        return _ADAPTERS[self]


_ADAPTERS: dict[Document, TypeAdapter] = {}  # made at the first use, since making one takes time


def _fault(error: ValidationError) -> str:
    """Returns the first fault of a content, as in "has no field counts.items"."""
    first = error.errors(include_url=False)[0]
    field = "".join(map(_step, first["loc"])).removeprefix(".")
    match first["type"]:
        case "json_invalid":
            return f"is not valid JSON ({first['ctx']['error']})"
        case "missing":
            return f"has no field {field}"
        case "extra_forbidden":
            return f"has an unknown field {field}"
    found = repr(first["input"])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    expected = " ".join(first["msg"].split())
    return f"has {field + '=' if field else ''}{found} ({expected})"


def _step(key: str | int) -> str:
    """Returns a key or an index of a place in nested values, as in ".counts" or "[2]"."""
    plain = isinstance(key, str) and re.fullmatch(r"\w+", key, re.ASCII)
    return f".{key}" if plain else f"[{key!r}]"
