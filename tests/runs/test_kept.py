"""Which checkpoints are kept, counted and replaced; the state is one table."""

import errno
from pathlib import Path

import jax
import numpy as np
import pytest

from pixelrec_jax.runs import checkpoint, kept
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.kept import DamagedError
from pixelrec_jax.runs.resume import restore_newest
from pixelrec_jax.system.errors import UserError

_STATE = {"a": {"table": np.ones((40, 20), np.float32)}}


def _open(folder):
    return Checkpoints(folder / "checkpoints", metric="ndcg@10")


def _steps(folder):
    return sorted(
        int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()
    )


def _save(checkpoints, step, value):
    checkpoints.save(step, _STATE, {"at": step}, {"ndcg@10": value} if value is not None else None)


def test_the_two_latest_and_the_best_are_kept(tmp_path):
    with _open(tmp_path) as checkpoints:
        for step, value in enumerate((0.1, 0.5, None, 0.5, 0.2, None, 0.3), start=1):
            _save(checkpoints, step, value)
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best) == ([7, 6, 4], 4)
        assert _steps(tmp_path) == [4, 6, 7]
        assert checkpoints.metadata(4) == {"at": 4}
    assert not list(tmp_path.rglob("*tmp*"))


def test_one_that_may_be_the_best_is_kept_and_no_other_is_called_so(tmp_path):
    with _open(tmp_path) as checkpoints:
        _save(checkpoints, 1, 0.5)
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").write_text("{}")
    with _open(tmp_path) as checkpoints:
        for step in (2, 3, 4, 5):
            _save(checkpoints, step, step / 100)
        checkpoints.wait()
        assert checkpoints.steps == [5, 4, 1]
        with pytest.raises(DamagedError, match="to use the next best, of step 5, rename it to"):
            assert checkpoints.best


def test_none_is_deleted_before_its_successor_was_read_back(tmp_path, monkeypatch):
    with _open(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            _save(checkpoints, step, None)
        checkpoints.wait()
        assert _steps(tmp_path) == [2, 3]

        def fail(_):
            raise ValueError("DATA_LOSS: a test")

        monkeypatch.setattr(checkpoint, "check_files", fail)
        _save(checkpoints, 4, None)
        with pytest.raises(
            UserError, match=r"step 4 was written .* as a whole \(DATA_LOSS: a test"
        ):
            checkpoints.wait()
        assert checkpoints.latest == 3
    assert {2, 3} < set(_steps(tmp_path))


def test_an_interrupted_deletion_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def interrupted(folder, **_):
        (folder / "_CHECKPOINT_METADATA").unlink()
        raise KeyboardInterrupt

    with _open(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            _save(checkpoints, step, None)
        with monkeypatch.context() as patch:
            patch.setattr(kept.shutil, "rmtree", interrupted)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.wait()
    with _open(tmp_path) as checkpoints:
        assert checkpoints.steps == [3, 2]
        _save(checkpoints, 4, None)
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["3", "4"]


def test_a_damaged_checkpoint_that_cannot_be_moved_does_not_count_and_is_replaced(
    tmp_path, monkeypatch
):
    with _open(tmp_path) as checkpoints:
        for step in (1, 2):
            _save(checkpoints, step, None)
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text("{}")

    def refuse(path, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    shapes = jax.tree.map(jax.numpy.asarray, _STATE)
    with _open(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            restored = restore_newest(checkpoints, lambda step: checkpoints.restore(step, shapes))
        assert restored[0] == 1
        assert "it stays where it is, as it cannot be moved (Permission denied)" in restored[2][0]
        _save(checkpoints, 2, None)
        checkpoints.wait()
        assert checkpoints.steps == [2, 1]
    with _open(tmp_path) as checkpoints:
        assert checkpoints.metadata(2) == {"at": 2}
