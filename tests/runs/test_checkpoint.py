"""Checkpoints: where they may lie, and which count."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from tests.tiny import tiny_config

_STATE = {"a": {"table": np.ones((3, 2), np.float32)}}


@pytest.mark.parametrize("name", ["lr[1e-3]", "lr*", "lr?", "**", "of [a/run"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, monkeypatch, name):
    refused = pytest.raises(UserError, match=r"cannot be kept in a path with '[\[*?]', here '/")
    with refused, run_folder.claim(tmp_path / name, ConfigDict()):
        pass
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    with refused, run_folder.claim(Path("run"), ConfigDict()):
        pass


def test_it_is_refused_before_the_first_step(toy_dataset, tmp_path):
    config = tiny_config("user=mf,item=id,dataset=toy", toy_dataset)
    with pytest.raises(UserError, match="cannot be kept in a path with"):
        train.train_and_evaluate(config, tmp_path / "lr[1e-3]")
    assert not (tmp_path / "lr[1e-3]").exists()


def test_a_checkpoint_counts_once_it_was_opened(tmp_path):
    with Checkpoints(tmp_path / "[x]", metric="ndcg@10") as checkpoints:
        checkpoints.save(1, _STATE, {}, None)
        with pytest.raises(
            UserError, match=r"step 1 was written to .* but is not there as a whole"
        ):
            checkpoints.wait()
        assert checkpoints.latest is None


def test_checkpoints_are_read_in_any_path(tmp_path):
    with Checkpoints(tmp_path / "x", metric="ndcg@10") as checkpoints:
        checkpoints.save(1, _STATE, {}, None)
    folder = (tmp_path / "x").rename(tmp_path / "[x] ?")
    with Checkpoints(folder, metric="ndcg@10", read_only=True) as checkpoints:
        np.testing.assert_array_equal(checkpoints.read(1, ("a",))["a"]["table"], np.ones((3, 2)))
