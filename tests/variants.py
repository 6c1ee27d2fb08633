"""Damaged variants of a JSON file, made from its content and from the type that declares it."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from typing_extensions import NoExtraItems, is_typeddict

from pixelrec_jax.system.schema import Document

_OTHERS = (None, True, -7, 1.5, "\x1b[1m", [[]], {"x": {}})
_Place = tuple[str | int, ...]


def variants(document: Document, content: Any) -> Iterator[tuple[str, bytes]]:
    """Yields name and text of every variant with one fault, which no reader may accept."""
    text = json.dumps(content).encode()
    for place, hint in _places(document.content, content):
        known = _allowed(hint)
        for other in _OTHERS:
            if known and type(other) not in known:
                yield f"{place} is {other!r}", json.dumps(_changed(content, place, other)).encode()
        if is_typeddict(hint) and _at(content, place) is not None:
            if _is_closed(hint):
                more = {**_at(content, place), "unknown": "x"}
                yield f"{place} has more", json.dumps(_changed(content, place, more)).encode()
            for key in sorted(hint.__required_keys__):  # alike in all processes of a test run
                less = {k: v for k, v in _at(content, place).items() if k != key}
                yield f"{place} lacks {key}", json.dumps(_changed(content, place, less)).encode()
    for end in {*range(0, len(text), -(-len(text) // 50)), len(text) - 1}:
        yield f"cut at {end}", text[:end]
    yield "not UTF-8", text[:-1] + b'"\xff"' + text[-1:]
    yield "nested", b"[" * 100_000
    yield "zeros", bytes(len(text))


def _places(hint: Any, content: Any, place: _Place = ()) -> Iterator[tuple[_Place, Any]]:
    """Yields each place in nested values with its declared type."""
    hint = _plain(hint)
    yield place, hint
    if content is None:
        return
    if get_origin(hint) in (Union, UnionType):
        hint = _plain(next(kind for kind in get_args(hint) if kind is not NoneType))
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        for key in content:
            if key in hints or _extra(hint) is not NoExtraItems:
                yield from _places(hints.get(key, _extra(hint)), content[key], (*place, key))
    elif get_origin(hint) is dict:
        for key in list(content)[:2]:
            yield from _places(get_args(hint)[1], content[key], (*place, key))
    elif get_origin(hint) is list and content:
        yield from _places(get_args(hint)[0], content[0], (*place, 0))


def _is_closed(hint: Any) -> bool:
    """Returns whether a TypedDict refuses a text under an unknown key."""
    forbids = getattr(hint, "__pydantic_config__", {}).get("extra") == "forbid"
    return forbids or _extra(hint) is not NoExtraItems


def _extra(hint: Any) -> Any:
    return getattr(hint, "__extra_items__", NoExtraItems)


def _plain(hint: Any) -> Any:
    while get_origin(hint) in (Annotated, Required, NotRequired):
        hint = get_args(hint)[0]
    return hint


def _allowed(hint: Any) -> set[type]:
    """Returns the types that a value may have; none of them for `Any`."""
    if hint is Any:
        return set()
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(_allowed(_plain(kind)) for kind in get_args(hint)))
    if is_typeddict(hint):
        return {dict}
    kind = get_origin(hint) or hint
    return {float, int} if kind is float else {kind}


def _at(content: Any, place: _Place) -> Any:
    for key in place:
        content = content[key]
    return content


def _changed(content: Any, place: _Place, value: Any) -> Any:
    """Returns a copy of nested values with another value at a place."""
    if not place:
        return value
    copy = json.loads(json.dumps(content))
    _at(copy, place[:-1])[place[-1]] = value
    return copy
