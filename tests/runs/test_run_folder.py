"""The config that a run keeps: found from any folder, without secrets, and what may change."""

import os
from pathlib import Path

import pytest

from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.run_folder import (
    MetricsLog,
    check_same,
    check_writable,
    claim,
    read_config,
    storable,
)
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.redact import is_redacted
from tests.tiny import tiny_config

PIXELS = "user=mf,item=vit_toy,dataset=toy"


def test_paths_are_kept_so_that_they_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").touch()
    config = tiny_config(PIXELS, "data/toy")
    config.item.weights, config.warm_start.run = "weights.pt", "runs/a"
    stored = storable(config)
    assert stored["dataset"]["path"] == str(tmp_path / "data" / "toy")
    assert stored["warm_start"]["run"] == str(tmp_path / "runs" / "a")
    assert stored["item"]["weights"] == str(tmp_path / "weights.pt")
    with claim(tmp_path / "run", config):
        check_same(tmp_path / "run", config)
    Path("weights.pt").unlink()  # it is not read again
    check_same(tmp_path / "run", config)
    os.makedirs("elsewhere")
    monkeypatch.chdir("elsewhere")
    assert read_config(tmp_path / "run").to_dict() == stored


@pytest.mark.parametrize("weights", ["", "owner/name@main", "package:name", "gs://bucket/a.pt"])
def test_names_that_are_not_paths_stay_as_they_are(weights):
    config = tiny_config(PIXELS, "gs://bucket/data")
    config.item.weights = weights
    stored = storable(config)
    assert stored["item"]["weights"] == weights
    assert stored["dataset"]["path"] == "gs://bucket/data"
    assert stored["warm_start"]["run"] == ""


def test_secrets_of_addresses_are_not_kept_and_the_same_command_continues(tmp_path):
    def given(weights):
        config = tiny_config(PIXELS, "https://user:S3CR3T@host/data")
        config.item.weights = weights
        return config

    config = given("https://user:S3CR3T@host/a.pt?signature=S3CR3T")
    with claim(tmp_path, config):
        assert "S3CR3T" not in (tmp_path / "config.json").read_text()
    check_same(tmp_path, config)
    check_same(tmp_path, given("https://user:S3CR3T@host/a.pt?signature=renewed"))
    with pytest.raises(UserError, match="another config") as refused:
        check_same(tmp_path, given("https://user:S3CR3T@host/b.pt"))
    assert "S3CR3T" not in str(refused.value)
    kept = read_config(tmp_path).item.weights
    assert is_redacted(kept)
    with pytest.raises(UserError, match="is kept without its secrets; give the whole address"):
        storage.check_complete(kept)


def test_files_nested_deeper_than_python_recurses_are_one_line(tmp_path):
    deep = '{"step":' * 100_000
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n' + deep + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2, is not valid JSON"):
        MetricsLog(tmp_path, continue_from=4)


def test_a_line_that_was_cut_when_the_run_was_killed_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    with MetricsLog(tmp_path, continue_from=4) as log:
        assert log.kept == {"step": 3, "loss": 1.0}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 1.0}\n'


def test_a_run_that_cannot_be_written_is_told_before_it_is_evaluated(tmp_path, monkeypatch):
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_folder, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\), but an"):
        check_writable(tmp_path)
