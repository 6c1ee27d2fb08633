"""A run continues from the newest checkpoint that is whole, to the same end."""

import errno
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from pixelrec_jax.runs import stored
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.kept import DamagedError
from pixelrec_jax.runs.resume import restore_newest
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from tests.tiny import tiny_config


def _config(dataset):
    config = tiny_config("user=mf,item=id,dataset=toy", dataset)
    config.train.update({"epochs": 3, "batch_size": 64, "log_every": 1, "checkpoint_every": 1})
    return config


@pytest.fixture(scope="module")
def finished(toy_dataset, tmp_path_factory):
    """The folder of a finished run, its config, and the shapes of its state."""
    folder, config = tmp_path_factory.mktemp("finished"), _config(toy_dataset)
    train.train_and_evaluate(config, folder)
    return folder, config, state_template(build_experiment(config))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run, which a test may damage; its config and the shapes of its state."""
    folder, config, template = finished
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", config, template


def _open(folder, **options):
    return Checkpoints(folder / "checkpoints", metric="ndcg@10", **options)


def _flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def _largest_file(folder):
    return max((folder / "state").rglob("*"), key=lambda file: file.stat().st_size)


def _steps(folder):
    return sorted(
        int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()
    )


def _end(folder, template):
    with _open(folder, read_only=True) as checkpoints:
        state = jax.device_get(checkpoints.restore(checkpoints.latest, template))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return state, [(line["step"], line["train/loss"]) for line in lines]


def _assert_same_end(folder, finished, template):
    (state, losses), (expected, expected_losses) = (
        _end(place, template) for place in (folder, finished)
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert losses == expected_losses
    assert (folder / "result.json").read_text() == (finished / "result.json").read_text()


def test_one_flipped_bit_of_any_chunk_or_node_of_the_index_is_noticed(run):
    folder, _, template = run
    with _open(folder, read_only=True) as checkpoints:
        latest = folder / "checkpoints" / str(checkpoints.latest) / "state"
        places = list(stored._places(stored._open(latest)))
        assert len(places) > 6  # tables of users and items with two moments each, and the index
        checkpoints.restore(checkpoints.latest, template)
        read_damaged = 0
        for place in places:
            _, base, name, offset, length = place.split(":")
            where = latest / (base + name), int(offset) + int(length) // 2
            _flip(*where)
            with pytest.raises(DamagedError):
                checkpoints.restore(checkpoints.latest, template)
            try:  # a part of the state: the two tables and the index are read for it
                checkpoints.read(checkpoints.latest, ("trainable",))
            except DamagedError:
                read_damaged += 1
            _flip(*where)
        assert 3 <= read_damaged < len(places)
        checkpoints.restore(checkpoints.latest, template)


def test_a_flipped_bit_sends_a_run_back_to_the_checkpoint_before_and_to_the_same_end(
    run, finished, capsys
):
    folder, config, template = run
    *_, before, latest = _steps(folder)
    damaged = folder / "checkpoints" / str(latest)
    file = _largest_file(damaged)
    _flip(file, file.stat().st_size // 3)
    train.train_and_evaluate(config, folder)
    errors = capsys.readouterr().err
    (told,) = [line for line in errors.splitlines() if "damaged" in line]
    assert told.startswith(f"the checkpoint of step {latest} is damaged or incomplete (")
    assert told.endswith(f"; it is now {damaged}.damaged; continuing from step {before}")
    assert "Traceback" not in errors
    assert Path(f"{damaged}.damaged", "_CHECKPOINT_METADATA").is_file()
    _assert_same_end(folder, finished[0], template)


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped"])
def test_any_damaged_file_is_a_damaged_checkpoint_and_the_one_before_is_taken(run, kind):
    folder, _, template = run
    latest = folder / "checkpoints" / str(max(_steps(folder)))
    index, *_ = (latest / "state" / "d").iterdir()
    files = [_largest_file(latest), index]
    files += [latest / "state" / name for name in ("manifest.ocdbt", "_METADATA", "_sharding")]
    files += [latest / "_CHECKPOINT_METADATA"]
    if kind == "missing":
        files.remove(latest / "state" / "_sharding")  # orbax can do without it
    for file in files:
        content = file.read_bytes()
        if kind == "missing":
            file.unlink()
        elif kind == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            _flip(file, len(content) // 2)
        with _open(folder) as checkpoints:
            newest, before, *_ = checkpoints.steps
            step, state, lines = restore_newest(
                checkpoints, lambda step, source=checkpoints: source.restore(step, template)
            )
            assert (step, int(state.step), checkpoints.latest) == (before, before, before), file
        (line,) = lines
        assert line.startswith(f"the checkpoint of step {newest} is damaged or incomplete"), file
        shutil.move(f"{latest}.damaged", latest)
        file.write_bytes(content)


def test_metadata_of_another_form_name_the_field(run):
    folder, _, template = run
    file = folder / "checkpoints" / str(max(_steps(folder))) / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    for change, found in (
        ({"metrics": {"ndcg@10": "high"}}, r"metrics\['ndcg@10'\]='high'"),
        ({"digests": {"step": "x"}}, "digests.step='x'"),
        ({"more": 1}, "an unknown field more"),
        ({"run": {}}, "is not what was saved"),
    ):
        changed = {**content, "custom_metadata": {**content["custom_metadata"], **change}}
        file.write_text(json.dumps(changed))
        with _open(folder, read_only=True) as checkpoints, pytest.raises(DamagedError, match=found):
            checkpoints.restore(checkpoints.latest, template)


def test_without_a_whole_checkpoint_the_run_ends_in_one_line_and_nothing_is_moved(run):
    folder, config, _ = run
    for step in _steps(folder):
        (folder / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step \d+: .*; step \d+: "):
        train.train_and_evaluate(config, folder)
    assert sorted(folder.rglob("*")) == before


def test_a_file_that_may_not_be_read_ends_the_run_and_nothing_is_moved(run, monkeypatch):
    folder, config, _ = run
    denied = _largest_file(folder / "checkpoints" / str(max(_steps(folder))))
    open_regular = stored.open_regular

    def deny(path):
        if path == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_regular(path)

    monkeypatch.setattr(stored, "open_regular", deny)
    before = _steps(folder)
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(config, folder)
    assert f"cannot be read ({denied}: Permission denied)" in str(error.value)
    assert "damaged" not in str(error.value)
    assert _steps(folder) == before


def test_a_damaged_best_checkpoint_gives_no_result_until_the_next_best_is_asked_for(run):
    folder, config, _ = run
    result = json.loads((folder / "result.json").read_text())
    best = folder / "checkpoints" / str(result["best_step"])
    file = _largest_file(best)
    _flip(file, file.stat().st_size // 3)
    with pytest.raises(UserError) as error:
        train.evaluate(config, folder)
    told = str(error.value)
    assert told.startswith(f"the checkpoint {best} is damaged or incomplete (")
    others = [step for step in _steps(folder) if step != result["best_step"]]
    evaluated = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["valid/ndcg@10"] for line in evaluated if "valid/ndcg@10" in line}
    second = max((scores[step], step) for step in others if step in scores)[1]
    assert told.endswith(f"; to use the next best, of step {second}, rename it to {best}.damaged")
    assert json.loads((folder / "result.json").read_text()) == result
    best.rename(f"{best}.damaged")
    assert train.evaluate(config, folder)["best_step"] == second
