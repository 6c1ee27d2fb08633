"""Pickles as plain data: the same values as Python's unpickler, and what a file may cost."""

import io
import pickle
import struct
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from pixelrec_jax.system import pickled

LIMIT = 1 << 20


def refuse(name):
    raise ValueError(f"{name} is not allowed")


def load(content, allowed=refuse, limit=LIMIT, persistent=None):
    return pickled.load(io.BytesIO(content), allowed, limit=limit, persistent=persistent)


SHARED = ["again"]
PLAIN = {
    "numbers": [0, 1, -1, 255, 256, 65_536, 2**31, -(2**31), 2**70, -(2**2100), 0.5, -1e300],
    "texts": ["", "a'\"\\\n", "ü\u20ac\U0001f600", "x" * 300, "y" * 70_000],
    "bytes": [b"", b"\x00\xff", b"z" * 300, b"z" * 70_000],
    "others": [None, True, False],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1,), [2])],
    "nested": {"a": {"b": [{}, {"c": ()}]}},
    "shared": [SHARED, SHARED],
    "many": list(range(3000)),
    "ordered": OrderedDict(a=1, b=2),
}


@pytest.mark.parametrize("protocol", range(3, 6))
def test_plain_values_are_those_of_pickle(protocol):
    found = load(pickle.dumps(PLAIN, protocol))
    assert found == PLAIN
    assert found["shared"][0] is found["shared"][1]
    assert type(found["ordered"]) is dict


@pytest.mark.parametrize("protocol", range(3))
def test_so_are_those_of_old_protocols(protocol):
    plain = {name: value for name, value in PLAIN.items() if name != "bytes"}
    assert load(pickle.dumps(plain, protocol)) == plain


def test_sets_are_lists_and_only_text_is_a_key():
    values = {"a": {1}, "b": frozenset({2}), 3: 4, (1, 2): 5, b"x": 6, None: 7}
    assert load(pickle.dumps(values, 4)) == {"a": [1], "b": [2]}


def test_texts_of_python_2():
    assert load(b"\x80\x02U\x03a\xc3\xbcT\x02\x00\x00\x00bc\x86.") == ("aü", "bc")
    pairs = b"](](U\x01aK\x01e](U\x01bK\x02ee"
    assert load(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.") == {"a": 1, "b": 2}


def test_pickles_in_a_row_are_read_one_by_one():
    file = io.BytesIO(b"".join(pickle.dumps(value, 4) for value in PLAIN.values()) + b"rest")
    values = [pickled.load(file, refuse, limit=LIMIT) for _ in PLAIN]
    assert values == list(PLAIN.values())
    assert file.read() == b"rest"


def test_an_object_gets_its_state_once_and_a_function_gets_none():
    instance = pickled.Call(pickled.Instance)
    make = b"cm\nThing\n)\x81"
    assert load(make + b"}X\x01\x00\x00\x00aK\x01sb.", lambda _: instance).state == {"a": 1}
    for content in (make + b"}b}b.", b"cm\nThing\n}b.", b"]}b.", b"K\x01}b."):
        with pytest.raises(ValueError, match="it sets the state of what has none, or has it"):
            load(content, lambda _: instance)
    assert load(make + b".", lambda _: instance).state is None


def test_persistent_ids():
    assert load(b"K\x01K\x02\x86Q.", persistent=lambda pair: sum(pair)) == 3
    for content in (b"K\x01K\x02\x86Q.", b"Pabc\n."):
        with pytest.raises(ValueError, match="refers to something outside"):
            load(content)
    with pytest.raises(ValueError, match="not a tuple"):
        load(b"Pabc\n.", persistent=print)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"K\x01",
        b".",
        b"0.",
        b"h\x00.",
        b"e.",
        b"K\x01\x86.",
        b"]K\x01s.",
        b"}K\x01a.",
        b"(K\x01d.",
        b"K\x01)R.",
        b"ibuiltins\nlist\n.",
        b"(cbuiltins\nlist\no.",
        b"cbuiltins\nlist\n.",
        b"\x82\x01.",
        b"\x97.",
        b"K\x01K\x02\x93.",
        b"\xff.",
    ],
)
def test_damaged_and_other_pickles_are_a_value_error(content):
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        load(content)


def sized(opcode, form, size):
    return opcode + struct.pack(form, size)


LARGE = b"(" + b"U\x01aN\x86" * 100_000 + b"t\x94"  # memo entry 0: a tuple of pairs
COSTLY = {
    "a length beyond the file": sized(b"\x96", "<Q", 2**32) + b".",
    "text beyond the file": sized(b"\x8d", "<Q", 2**40) + b".",
    "a number beyond the file": sized(b"\x8b", "<I", 2**31 - 1) + b".",
    "a frame beyond the file": sized(b"\x95", "<Q", 2**40) + b"K",
    "copies of arguments": LARGE + b"(" + b"cm\nf\nh\x00R" * 99 + b"l.",
    "copies of persistent ids": LARGE + b"(" + b"h\x00Q" * 99 + b"l.",
    "copies of pairs": LARGE + b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 99 + b"l.",
    "many steps": b"(" + b"}" * (LIMIT + 1) + b"l.",
    "long names": b"X" + struct.pack("<I", 2**20) + b"n" * 2**20 + b"\x94h\x00\x93.",
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_a_file_costs_is_bounded_by_its_size(name):
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"steps|bytes|letters|remain|not enough data"):
        load(COSTLY[name], lambda _: pickled.Call(lambda *_: None), persistent=lambda _: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6 + 200 * min(len(COSTLY[name]), LIMIT)
    assert time.monotonic() - start < 20


def test_depth_costs_no_stack():
    deep = b")" + b"\x85" * 500_000 + b"\x94"
    assert load(deep + b"}h\x00Ns\x86.")[1] == {}  # a tuple is not a key
    assert len(load(b"(" * 200_000 + b"l" * 200_000 + b".")) == 1
    assert list(load(b"}U\x01a" * 200_000 + b"}" + b"s" * 200_000 + b".")) == ["a"]


def test_tuples_that_share_their_halves_are_not_hashed():
    content = b")" + b"2\x86" * 100 + b"\x94}h\x00Ns."
    assert load(content) == {}


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_file_with_wrong_bytes_is_a_value_or_one_error():
    rng = np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps({**PLAIN, "texts": ["x"], "bytes": [b"y"]}, 4), np.uint8)
    errors = set()
    for _ in range(1000):
        damaged = whole.copy()
        damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
        try:
            load(damaged.tobytes())
        except Exception as error:
            errors.add(type(error))
    assert errors
    assert all(issubclass(error, ValueError) for error in errors), errors
