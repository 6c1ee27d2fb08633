"""Files of a checkpoint: what is there as a whole, and which errors tell of damage."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from pixelrec_jax.runs import stored
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.system.errors import TransientError, UserError
from pixelrec_jax.system.faults import causes, error_number

# As tensorstore 0.1.86 tells of a file without permission, once more than the system does.
_DENIED = (
    'PERMISSION_DENIED: Error opening "zarr3" driver: Error reading local file "/run/manifest": '
    "Failed to open: \"/run/manifest\": Permission denied [tensorstore_spec='{}', "
    "os_error_code='13']"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint with large arrays, whose chunks lie in a file, and small ones, in the index."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    state = {f"large_{n}": rng.normal(size=(50, 40)).astype(np.float32) for n in range(3)}
    with Checkpoints(folder, metric="x") as checkpoints:
        checkpoints.save(1, {**state, "small": np.arange(3)}, {}, None)
    return folder / "1"


def _data_files(folder):
    """The files that an index names, with the last byte that it needs of each."""
    store = stored._open(folder / stored.STATE)
    ends = {}
    for place in stored._places(store):
        _, base, name, offset, length = place.split(":")
        file = folder / stored.STATE / (base + name)
        ends[file] = max(ends.get(file, 0), int(offset) + int(length))
    return ends


def test_a_file_that_is_missing_or_cut_by_a_byte_is_noticed(whole):
    stored.check_files(whole)
    ends = _data_files(whole)
    assert len(ends) >= 2  # the index, and the chunks
    ends[whole / "state" / "manifest.ocdbt"] = (whole / "state" / "manifest.ocdbt").stat().st_size
    for file, end in ends.items():
        content = file.read_bytes()
        for cut in (content[: end - 1], content[:0], None):
            if cut is None:
                file.unlink()
            else:
                file.write_bytes(cut)
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                stored.check_files(whole)
            assert stored.damage(error.value)
        file.write_bytes(content)
    stored.check_files(whole)


def test_chunks_that_are_not_in_the_index_are_noticed(tmp_path):
    base = {"driver": "file", "path": f"{tmp_path}/state/"}
    tree = {"max_decoded_node_bytes": 200, "max_inline_value_bytes": 4}  # of several levels
    spec = {"driver": "ocdbt", "base": base, "config": tree}
    store = stored.tensorstore.KvStore.open(spec).result()
    grid = {"configuration": {"chunk_shape": [2, 2]}}
    store["a/zarr.json"] = json.dumps({"shape": [5, 4], "chunk_grid": grid}).encode()
    for chunk in ("0/0", "0/1", "1/0", "1/1", "2/0"):
        store[f"a/c/{chunk}"] = b"content"
    with pytest.raises(ValueError, match="a has 5 chunks, expected 6"):
        stored.check_files(tmp_path)
    store["a/c/2/1"] = b"content"
    stored.check_files(tmp_path)
    kinds = [place.partition(":")[0] for place in stored._places(stored._open(tmp_path / "state"))]
    assert kinds.count("value") == 7
    assert kinds.count("btreenode") > 1


def _raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/1/state"),
        FileNotFoundError("Metadata file (named _METADATA) does not exist"),
        ValueError("DATA_LOSS: Error decoding manifest"),
        json.JSONDecodeError("Expecting value", "", 0),
        ocp.errors.InvalidLayoutError("no valid checkpoint"),
        _raised(KeyError("no handler"), _raised(Exception("array"), ValueError("OUT_OF_RANGE: x"))),
    ],
)
def test_errors_of_content_are_damage(error):
    assert stored.damage(error)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/run/1/state"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        _raised(KeyError("no handler"), ValueError(_DENIED)),
        _raised(KeyError("no handler"), KeyboardInterrupt()),
        ValueError("UNAVAILABLE: no route to host"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_errors_of_the_system_are_not_damage(error):
    assert stored.damage(error) is None


def test_what_the_system_said_is_found_in_the_text_of_tensorstore():
    assert error_number(ValueError("UNKNOWN: x [os_error_code='116']")) == errno.ESTALE
    assert error_number(ValueError(_DENIED)) == errno.EACCES
    assert len(list(causes(_raised(KeyError(), ValueError())))) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            _raised(KeyError("no handler"), ValueError(_DENIED)),
            r"it cannot \(PERMISSION_DENIED: .*: Permission denied\); none; change the permissions",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/run/x"),
            r"it cannot \(/run/x: No space left on device\); none; free disk space and start again",
        ),
    ],
)
def test_errors_of_the_system_are_told_for_what_they_are(error, message):
    with pytest.raises(UserError, match=message):
        stored.raise_explained("it cannot", error, Path("/run"), state="none")


def test_errors_of_storage_may_pass_and_faults_of_the_program_stay_faults():
    class Remote:
        def __str__(self):
            return "gs://bucket/run"

    with pytest.raises(TransientError, match=r"\(UNAVAILABLE: no route\); check the network"):
        stored.raise_explained("it cannot", ValueError("UNAVAILABLE: no route"), Remote())
    for error in (ValueError("not a tree"), RuntimeError("a fault")):
        with pytest.raises(type(error)) as raised:
            stored.raise_explained("it cannot", error, Path("/run"))
        assert raised.value is error
        assert raised.value.__cause__ is None
    wrapped = _raised(KeyError("no handler"), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stored.raise_explained("it cannot", wrapped, Path("/run"))


def test_a_file_that_may_not_be_read_is_named_and_not_called_damaged(whole, tmp_path, monkeypatch):
    folder = tmp_path / "1"
    shutil.copytree(whole, folder)
    open_regular = stored.open_regular

    def deny(path):
        if path.name == "manifest.ocdbt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_regular(path)

    monkeypatch.setattr(stored, "open_regular", deny)
    with (
        Checkpoints(tmp_path, metric="x", read_only=True) as checkpoints,
        pytest.raises(UserError) as error,
    ):
        checkpoints.read(1, ("small",))
    assert type(error.value) is UserError
    assert str(error.value).startswith(f"the checkpoint {folder} cannot be read ({folder}/state/")
    assert str(error.value).endswith(
        "manifest.ocdbt: Permission denied); change the permissions, or give another path"
    )
