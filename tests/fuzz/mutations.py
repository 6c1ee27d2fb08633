"""Files that are nearly valid: seeds flipped, cut, spliced, repeated or filled with numbers."""

from collections.abc import Sequence

from hypothesis import strategies as st

# Sizes, counts and offsets that overflow or lead outside, and bytes with a meaning in many formats.
_NUMBERS = tuple(
    (number % 2**bits).to_bytes(bits // 8, order)
    for bits in (8, 16, 32, 64)
    for number in (0, 1, -1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2**bits // 3)
    for order in ("little", "big")
)
_TEXTS = tuple(
    text.encode()
    for text in (
        *('"', "'", ",", "\n", "\r", "\r\n", "\0", "\x1b[31m", "\u202e", "\ufeff", "=1", "null"),
        *("[" * 3000, '{"a":' * 3000),
        *("{", "}", "[", "]", ":", "-", "1e999", "NaN", "-0", "9" * 30, "\\u0000", "../", "é"),
    )
)
_PIECES = st.one_of(
    st.sampled_from(_NUMBERS), st.sampled_from(_TEXTS), st.binary(min_size=1, max_size=8)
)
_PLACE = st.floats(0, 1, exclude_max=True)
_CHANGE = st.tuples(
    st.sampled_from(("put", "put", "put", "insert", "flip", "cut", "drop", "repeat", "splice")),
    _PLACE,
    _PLACE,
    _PIECES,
)


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Returns a strategy of contents of files: a seed with up to eight changes, or any bytes."""
    changed = st.builds(
        _changed,
        st.sampled_from(list(seeds)),
        st.sampled_from(list(seeds)),
        st.lists(_CHANGE, max_size=8),
    )
    return st.one_of(changed, changed, changed, st.binary(max_size=64))


def _changed(
    seed: bytes, other: bytes, changes: Sequence[tuple[str, float, float, bytes]]
) -> bytes:
    content = seed
    for kind, first, second, piece in changes:
        start, end = sorted((int(first * (len(content) + 1)), int(second * (len(content) + 1))))
        part = content[start:end][:4096]
        if kind == "put":
            content = content[:start] + piece + content[start + len(piece) :]
        elif kind == "insert":
            content = content[:start] + piece + content[start:]
        elif kind == "flip":
            content = content[:start] + bytes(
                b ^ 1 << piece[0] % 8 for b in content[start : start + 1]
            )
            content += seed[len(content) :]
        elif kind == "cut":
            content = content[:end]
        elif kind == "drop":
            content = content[:start] + content[start + len(part) :]
        elif kind == "repeat":
            content = content[:start] + part * 2 + content[start + len(part) :]
        else:
            content = content[:start] + other[start:]
    return content
