from pathlib import Path
from typing import Annotated, NotRequired

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.schema import Count, Document, Finite, Sha256, record
from tests.variants import variants


@record
class _Part(TypedDict):
    sha256: Sha256
    bytes: Count


@record
class _Whole(TypedDict):
    parts: dict[str, _Part]
    scores: list[Finite]
    note: str | None
    more: NotRequired[_Part]
    share: Annotated[float, Field(ge=0, le=1)]


_DOCUMENT = Document("whole.json", _Whole, "make {folder} again")
_PART = {"sha256": "0" * 64, "bytes": 3}
_CONTENT = {"parts": {"a.npy": _PART}, "scores": [0.5, 1], "note": None, "more": _PART, "share": 1}
_VARIANTS = dict(variants(_DOCUMENT, _CONTENT))


def test_a_whole_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "whole.json"
    _DOCUMENT.write(path, _CONTENT)
    assert _DOCUMENT.read(path) == _DOCUMENT.check(_CONTENT, path) == _CONTENT


@pytest.mark.parametrize("name", _VARIANTS)
def test_a_damaged_file_is_one_line_that_names_the_file_and_the_remedy(name):
    with pytest.raises(UserError) as error:
        _DOCUMENT.parse(_VARIANTS[name], Path("/data/whole.json"))
    message = str(error.value)
    assert message.isprintable()
    assert message.startswith("/data/whole.json ")
    assert message.endswith("; make /data again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"parts": {}, "scores": [], "note": null}', "has no field share"),
        ('{"parts": {"a.b": {"bytes": 1}}}', "has no field parts['a.b'].sha256"),
        ('{"parts": {}, "scores": [0, NaN]}', "has scores[1]=nan (Input should be a finite"),
        ('{"parts": {"a": 7}}', "has parts.a=7 (Input should be an object"),
        ('{"parts": {}, "scores": [], "note": null, "share": 2}', "has share=2 (Input should"),
        ('{"parts": {}, "scores": [], "note": null, "share": 0, "\\u202e": 2}', "['\\u202e']"),
        ("[]", "has [] (Input should be an object"),
        ("{", "is not valid JSON (EOF"),
    ],
)
def test_the_message_names_the_field(text, message):
    with pytest.raises(UserError) as error:
        _DOCUMENT.parse(text.encode(), Path("whole.json"))
    assert message in str(error.value)


def test_a_line_of_a_file_is_named():
    with pytest.raises(UserError, match=r"^m.jsonl, line 3, is not valid JSON"):
        _DOCUMENT.parse(b"", Path("m.jsonl"), line=3)


def test_what_is_not_a_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); make .* again$"):
        _DOCUMENT.read(tmp_path)
    with pytest.raises(FileNotFoundError):  # readers say themselves what is to be made
        _DOCUMENT.read(tmp_path / "absent")
