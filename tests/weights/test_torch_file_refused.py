"""Files of PyTorch that no one should trust: one error, and no code is run."""

import copy
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.torch_file import read_torch
from tests.weights.pickles import (
    Inner,
    file_with,
    legacy_start,
    members_of,
    refusal,
    save,
    tensor_pickle,
    zip_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class _Call:
    """Pickles as a call of `function`, which a careless reader would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "posix.system": _Call(os.system, "touch MARKER"),
    "eval": _Call(eval, "open('MARKER', 'w')"),
    "getattr": _Call(getattr, "text", "upper"),
    "torch.serialization.load": _Call(torch.load, "MARKER"),
    "multiarray._reconstruct": np.array(["text", None]),
    "multiarray.scalar": np.float32(1),
    "torch.nn.modules.linear.Linear": nn.Linear,
}


@pytest.mark.parametrize("form", ["zip", "legacy", "torchscript"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", EVIL)
def test_what_is_no_tensor_is_refused_and_not_run(tmp_path, monkeypatch, name, protocol, form):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"weight": EVIL[name]}, protocol)
    message = refusal(file_with(content, tmp_path / "evil", form))
    assert f"{name}'" in message
    assert "no code is run" in message
    assert not (tmp_path / "MARKER").exists()


@pytest.mark.parametrize("index", range(5))
def test_each_pickle_of_a_legacy_file_is_guarded(tmp_path, monkeypatch, index):
    monkeypatch.chdir(tmp_path)
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []]
    parts[index] = EVIL["posix.system"]
    path = tmp_path / "evil"
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    assert "posix.system" in refusal(path)
    assert not (tmp_path / "MARKER").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch._utils\n_rebuild_tensor_v2",
        "torch\nFloatStorage",
        "__torch__\nInner",
        "collections\nOrderedDict",
    ],
)
@pytest.mark.parametrize("attribute", ["__defaults__", "__setstate__", "__init__"])
def test_a_file_cannot_change_how_the_next_is_read(tmp_path, target, attribute):
    good = tmp_path / "good.pt"
    torch.jit.script(Inner()).save(good)
    before = read_torch(good)
    # GLOBAL target, (None, {attribute: ()}), BUILD: sets the attribute of what is named
    build = f"c{target}\n(N(V{attribute}\n)dtb0}}.".encode()
    refusal(file_with(build, tmp_path / "evil", "zip"))
    after = read_torch(good)
    assert list(after) == list(before)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("function", ["ctorch\ndevice\n", "h\x00"], ids=["another", "itself"])
def test_a_callable_has_no_state_to_set(tmp_path, function):
    # GLOBAL, its memo entry 0; BUILD it from (function, (), {}, None); call it
    content = f"ctorch\nSize\nq\x00({function})}}Ntb)R.".encode()
    assert "it sets the state of what has none" in refusal(
        file_with(content, tmp_path / "x", "zip")
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "quantised", "complex"])
def test_other_kinds_of_tensors_are_refused(tmp_path, form, kind):
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "complex": lambda: torch.ones(2, dtype=torch.complex64),
    }[kind]()
    message = refusal(save({"weight": tensor}, tmp_path / "x.pth", form))
    assert "only plain dense tensors are read" in message


@pytest.mark.parametrize("form", ["zip", "legacy", "torchscript"])
def test_a_truncated_file_is_refused(tmp_path, form):
    path = tmp_path / "x.pt"
    if form == "torchscript":
        torch.jit.script(Inner()).save(path)
    else:
        save(Inner().state_dict(), path, form)
    whole = path.read_bytes()
    for length in {0, 1, 4, 20, len(whole) - 1, *range(100, len(whole), len(whole) // 20)}:
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_damaged_file_is_one_error_or_other_numbers(tmp_path, form):
    """A thousand files with a few wrong bytes in what describes the tensors."""
    path = save({"weight": torch.rand(3, 2), "bias": torch.rand(2).half()}, tmp_path / "x", form)
    members = members_of(path) if form == "zip" else {"all": path.read_bytes()}
    name = next(name for name in members if name.endswith(("data.pkl", "all")))
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(1000):
        damaged = np.frombuffer(members[name], np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
        if form == "zip":
            zip_of(path, members | {name: damaged.tobytes()})
        else:
            path.write_bytes(damaged.tobytes())
        try:
            read_torch(path)
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 500
    assert not any("\n" in error for error in errors)


@pytest.mark.parametrize(
    "field",
    [
        {"size": 7},
        {"size": -1},
        {"size": 2**62},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"shape": (4, 2)},
        {"shape": (-3, -2)},
        {"shape": (2**20, 2**20), "strides": (0, 0)},
        {"shape": (2**20 + 1,), "strides": (0,)},
        {"shape": (b"x", 3 * 10**9)},
        {"shape": (0, b"x"), "strides": (0, 0)},
        {"shape": (True, 2)},
        {"shape": (0,) * 65, "strides": (0,) * 65},
        {"strides": (2, False)},
        {"size": True, "shape": (1, 1)},
        {"offset": False},
        {"key": b"0"},
        {"strides": (3, 1)},
        {"strides": (-2, 1)},
        {"strides": (1,)},
        {"key": "1"},
        {"key": "../x"},
        {"dtype": "DoubleStorage"},
    ],
    ids=str,
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, field):
    asked = {"dtype": "FloatStorage", "key": "0", "size": 6, "offset": 0}
    asked |= {"shape": (3, 2), "strides": (2, 1)}

    def read(asked):
        path = tmp_path / "x.pth"
        members = {"archive/data.pkl": tensor_pickle(**asked), "archive/data/0": bytes(24)}
        return read_torch(zip_of(path, members))

    assert read(asked)["w"].shape == (3, 2)
    with pytest.raises(UserError, match="is not a readable PyTorch file"):
        read(asked | field)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    assert "without the data.pkl" in refusal(zip_of(path, {"readme.txt": b""}))
    assert "does not hold a named tensor" in refusal(save({"epoch": 1}, path, "zip"))
    assert "does not hold a named tensor" in refusal(save(torch.ones(2), path, "legacy"))
    assert "compressed" in refusal(
        zip_of(path, {"archive/data.pkl": bytes(9)}, zipfile.ZIP_DEFLATED)
    )
    path.write_bytes(pickle.dumps({"weight": 1}))
    assert "is not a readable PyTorch file" in refusal(path)
    path.write_bytes(b"<html>")
    assert "is not a readable PyTorch file" in refusal(path)
    assert "is not a readable PyTorch file" in refusal(tmp_path / "missing")


def test_numbers_in_the_other_order_are_refused(tmp_path):
    path = save({"weight": torch.ones(2)}, tmp_path / "x.pth", "zip")
    name = next(name for name in members_of(path) if name.endswith("byteorder"))
    assert "big-endian" in refusal(zip_of(path, members_of(path) | {name: b"big"}))
    path.write_bytes(legacy_start(little=False))
    assert "big-endian" in refusal(path)


def test_a_memo_of_absurd_size_is_not_made(tmp_path, form):
    content = b"\x80\x02}r\xff\xff\xff\x7f."  # EMPTY_DICT, LONG_BINPUT 2**31 - 1
    tracemalloc.start()
    assert "does not hold a named tensor" in refusal(file_with(content, tmp_path / "x", form))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_module_within_itself_is_refused(tmp_path):
    # NEWOBJ, its memo entry 0; its state is {"again": itself}
    content = b"\x80\x02c__torch__\nLoop\n)\x81q\x00}X\x05\x00\x00\x00againh\x00sb."
    assert "one of over 1,000 letters" in refusal(file_with(content, tmp_path / "x", "zip"))


def test_modules_that_share_children_are_refused(tmp_path):
    """Sixty modules without a tensor, each of which holds the next one twice."""
    content = b"\x80\x02c__torch__\nLeaf\n)\x81}b"
    for _ in range(60):  # memo entry 0 is the child; the state is {"a": child, "b": child}
        content += b"q\x00c__torch__\nNode\n)\x81}(Va\nh\x00Vb\nh\x00ub"
    message = refusal(file_with(content + b".", tmp_path / "x", "zip"))
    assert "more than 100,000 names" in message


def test_members_of_a_zip_cannot_overlap(tmp_path):
    tensors = {f"w{n}": torch.full((1000,), float(n)) for n in range(9)}
    path = save(tensors, tmp_path / "x.pth", "zip")
    names = [name for name in members_of(path) if "/data/" in name]
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(names[0]).header_offset
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:  # twenty more names for the bytes of one
        for number in range(20):
            info = archive.getinfo(names[0])
            archive.filelist.append(copy.copy(info))
            archive.filelist[-1].filename = f"{names[0]}{number}"
            archive.filelist[-1].header_offset = offset
        archive._didModify = True
    assert len(path.read_bytes()) < 2 * len(content)
    assert "longer than the file" in refusal(path)


def test_a_deep_key_is_refused(tmp_path, form):
    content = b"})" + b"\x85" * 1_000_000 + b"Ns."  # a tuple in a tuple in a ... as a key
    assert "does not hold a named tensor" in refusal(file_with(content, tmp_path / "x", form))


def test_names_of_storages_are_text(tmp_path):
    keys = b"])" + b"\x85" * 1_000_000 + b"a."
    (tmp_path / "x").write_bytes(legacy_start() + pickle.dumps({}) + keys)
    assert "the name of a storage is not text" in refusal(tmp_path / "x")


def test_copies_of_a_dictionary_are_refused(tmp_path, form):
    pairs = b"](" + b"X\x01\x00\x00\x00aN\x86" * 10_000 + b"e\x94"
    content = pairs + b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000 + b"l."
    assert "more than 4,194,304 steps" in refusal(file_with(content, tmp_path / "x", form))


def test_a_long_name_of_a_module_is_refused(tmp_path):
    name = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
    leaf = b"c__torch__\nLeaf\n)\x81}X\x01\x00\x00\x00bNsb"
    content = b"\x80\x02c__torch__\nNode\n)\x81}" + name + leaf + b"sb."
    message = refusal(file_with(content, tmp_path / "x", "zip"))
    assert len(message) < 500
