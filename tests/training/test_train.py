"""Training: same losses on any mesh, exact continuation after a kill, early stopping, bad ends."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
import polars
import pytest

from pixelrec_jax.data.interactions import load
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import state_template
from tests import subprocesses
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import ROOT, tiny_config, use_tiny_encoders

MODELS = ("user=sasrec,item=id,dataset=toy", "user=sasrec,item=vit_toy,dataset=toy")


def _config(words, dataset, **train_changes):
    config = tiny_config(words, dataset)
    config.train.log_every = 2
    config.train.checkpoint_every = 3
    config.train.epochs = 2
    config.train.update(train_changes)
    return config


def _losses(config, devices, steps):
    return run_steps(build_experiment(config, devices=devices), steps)[0]


def _on_one_device(config):
    """An experiment on one device, and a state there and on the host."""
    experiment = build_experiment(config, devices=jax.devices()[:1])
    start = draw_state(experiment)
    return experiment, place_state(start, experiment), start


@pytest.mark.numerical
@pytest.mark.parametrize("words", MODELS)
def test_losses_are_those_of_one_device(toy_dataset, words):
    config = _config(words, toy_dataset)
    config.user.dropout = 0.1  # the same random numbers must fall on the same rows
    one = _losses(config, jax.devices()[:1], steps=20)
    assert one[-5:].mean() < one[:5].mean()
    for axes in ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        config.mesh.update(axes)
        np.testing.assert_allclose(_losses(config, jax.devices(), steps=20), one, rtol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("item", ["swin_t", "efficientnet_lite0"])
def test_random_and_batch_dependent_layers_do_not_depend_on_the_devices(
    toy_dataset, monkeypatch, item
):
    """Drop path and batch statistics are those of one device, with repeats on several devices."""
    use_tiny_encoders(monkeypatch)
    config = _config(f"user=mf,item={item},dataset=toy", toy_dataset)
    config.item.update({"weights": "", "trainable": "all"})
    if item == "swin_t":
        config.item.drop_path = 0.5
    start, results = None, []
    for devices in (jax.devices()[:1], jax.devices()):
        experiment = build_experiment(config, devices=devices)
        start = draw_state(experiment) if start is None else start
        first, state = run_steps(experiment, 1, place_state(start, experiment))
        # After one step: from then on Adam turns the rounding of gradients that are zero into
        # steps, such as that of a batch norm's bias ahead of a convolution and another batch norm.
        statistics = jax.device_get(state.model_state)
        further, _ = run_steps(experiment, 5, state)
        results.append(([*first, *further], statistics))
    (one, one_statistics), (many, many_statistics) = results
    np.testing.assert_allclose(many, one, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, many_statistics, one_statistics)


def test_frozen_batch_norm_keeps_its_statistics_unless_asked_to_train(toy_dataset, monkeypatch):
    use_tiny_encoders(monkeypatch)
    config = _config("user=mf,item=efficientnet_lite0,dataset=toy", toy_dataset)
    config.item.update({"weights": "", "trainable": "last:1"})

    def changed_blocks():
        experiment, state, before = _on_one_device(config)
        before = before.model_state["batch_stats"]["item_encoder"]["backbone"]
        _, state = run_steps(experiment, 1, state)
        after = state.model_state["batch_stats"]["item_encoder"]["backbone"]
        differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
        return {name for name, tree in differ.items() if any(jax.tree.leaves(tree))}

    assert changed_blocks() == {"head"}
    config.item.frozen_in_train_mode = True
    assert changed_blocks() == {"stem", "stage_0", "stage_1", "head"}


def test_a_mesh_that_does_not_cover_the_devices_is_refused(toy_dataset):
    config = _config(MODELS[0], toy_dataset)
    config.mesh.update({"data": 3, "fsdp": 2})
    with pytest.raises(UserError, match="their product must be 8"):
        build_experiment(config)


def test_frozen_blocks_stay_and_have_no_moments(toy_dataset):
    config = _config(MODELS[1], toy_dataset)
    config.item.trainable = "last:1"
    experiment, state, before = _on_one_device(config)
    assert set(before.frozen["item_encoder"]["backbone"]) == {"stem", "block_0"}
    assert set(before.trainable["item_encoder"]["backbone"]) == {"block_1", "norm"}
    moments = [x for x in jax.tree.leaves(before.opt_state) if x.ndim]
    trainable = sum(x.size for x in jax.tree.leaves(before.trainable))
    assert sum(x.size for x in moments) == 2 * trainable
    _, after = run_steps(experiment, 3, state)
    jax.tree.map(np.testing.assert_array_equal, before.frozen, jax.device_get(after.frozen))
    for old, new in zip(
        jax.tree.leaves(before.trainable), jax.tree.leaves(after.trainable), strict=True
    ):
        assert not np.array_equal(old, new)


def test_gradients_are_clipped(toy_dataset):
    # Clipped to next to nothing, Adam's epsilon leaves no step; the decay is off.
    config = _config(MODELS[0], toy_dataset)
    config.optim.update({"clip_norm": 1e-12, "weight_decay": 0.0, "visual_weight_decay": 0.0})
    experiment, state, before = _on_one_device(config)
    _, after = run_steps(experiment, 2, state)
    close = partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, before.params, jax.device_get(after.params))


class _KilledError(Exception):
    pass


def _dying_iterate(at_batch):
    """The real pipeline, which dies before batch `at_batch` of this process."""
    real = train.iterate

    @contextmanager
    def iterate(*args, **kwargs):
        def batches(iterator):
            for number, batch in enumerate(iterator):
                if number == at_batch:
                    raise _KilledError
                yield batch

        with real(*args, **kwargs) as iterator:
            yield batches(iterator)

    return iterate


def _run(config, workdir):
    """Runs to the end; returns the final state, the logged values and the result."""
    result = train.train_and_evaluate(config, workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in [n for n in record if n.startswith("time/") or "_per_" in n]:
            del record[name]
    return _latest(config, workdir), records, result


def _latest(config, workdir):
    """The state of the latest checkpoint."""
    template = state_template(build_experiment(config))
    with Checkpoints(workdir / "checkpoints", metric=config.eval.monitor) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.latest, template))


def _assert_equal_runs(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1] == other[1]
    assert one[2] == other[2]


# Before the first checkpoint, between two, right after one, in the second epoch; images add what
# is read from disk, for which one of these is enough.
@pytest.mark.parametrize(("words", "deaths"), [(MODELS[0], (1, 5, 3, 2)), (MODELS[1], (5,))])
def test_a_run_that_is_killed_again_and_again_equals_the_uninterrupted_one(
    toy_dataset, tmp_path, monkeypatch, words, deaths
):
    config = _config(words, toy_dataset)
    config.user.dropout = 0.1
    whole = _run(config, tmp_path / "whole")
    assert whole[1][-1]["step"] == int(whole[0].step)
    for batches_until_death in deaths:
        with monkeypatch.context() as patch:
            patch.setattr(train, "iterate", _dying_iterate(batches_until_death))
            with pytest.raises(_KilledError):
                train.train_and_evaluate(config, tmp_path / "killed")
    _assert_equal_runs(_run(config, tmp_path / "killed"), whole)


def test_a_signal_that_arrives_while_a_step_is_logged_saves_the_next_step(
    toy_dataset, tmp_path, monkeypatch
):
    config = _config(MODELS[0], toy_dataset, checkpoint_every=1000)
    write = run_folder.MetricsLog.write

    def write_and_signal(self, step, scalars):
        write(self, step, scalars)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_folder.MetricsLog, "write", write_and_signal)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", metric="ndcg@10", read_only=True) as checkpoints:
        assert checkpoints.latest == 3  # logged at step 2


def _command(words, dataset, workdir):
    path = f"{ROOT / 'configs' / 'pixelrec.py'}:{words}"
    options = {
        "dataset.path": dataset,
        "width": 16,
        **({"item.image_size": 16} if "vit" in words else {}),
        "train.batch_size": 16,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
        "train.epochs": 5,
        "data.prefetch": 1,
        "data.slot_buckets": 1,
    }
    return [
        *(
            sys.executable,
            "-m",
            "pixelrec_jax.programs.train",
            f"--config={path}",
            f"--workdir={workdir}",
        ),
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


def _started(command):
    """A run on one device."""
    environment = {**os.environ, "XLA_FLAGS": subprocesses.xla_flags(1)}
    return subprocesses.started(command, cwd=ROOT, env=environment)


def _last_step(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def _steps_logged(workdir):
    log = workdir / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_program_stopped_by_sigterm_saves_its_step(toy_dataset, tmp_path, workers):
    command = [*_command(MODELS[1], toy_dataset, tmp_path), f"--config.data.workers={workers}"]
    command += ["--config.train.epochs=1000", "--config.train.checkpoint_every=1000000"]
    with _started(command) as victim:
        while _steps_logged(tmp_path) < 2:
            assert victim.poll() is None, victim.stderr.read()
            time.sleep(0.01)
        os.killpg(victim.pid, signal.SIGINT if workers else signal.SIGTERM)
        _, errors = victim.communicate()
    assert victim.returncode == 130
    assert "error: interrupted; start the same command again" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    saved = max(
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert f"step {saved} is saved" in errors
    assert saved == _last_step(tmp_path)


@pytest.mark.slow
def test_the_program_killed_by_a_signal_continues_with_the_same_command(toy_dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def finish(workdir):
        with _started(_command(MODELS[0], toy_dataset, workdir)) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors

    finish(whole)
    with _started(_command(MODELS[0], toy_dataset, killed)) as victim:
        while _steps_logged(killed) < 8:
            assert victim.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (killed / "result.json").exists()
    finish(killed)

    def losses(workdir):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["train/loss"]) for record in map(json.loads, lines)]

    assert losses(killed) == losses(whole)
    assert (killed / "result.json").read_text() == (whole / "result.json").read_text()


@pytest.fixture(scope="module")
def finished(toy_dataset, tmp_path_factory):
    """The workdir of a finished run, its config and its result."""
    workdir, config = tmp_path_factory.mktemp("finished"), _config(MODELS[0], toy_dataset, epochs=1)
    return workdir, config, train.train_and_evaluate(config, workdir)


def test_finished_runs_evaluate_again_to_the_same_result(finished):
    workdir, config, result = finished
    assert train.train_and_evaluate(config, workdir) == result
    assert train.evaluate(config, workdir) == result
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("words", [MODELS[0], "user=mf,item=id,dataset=toy"])
def test_a_split_by_time_ranks_those_who_have_a_past_and_a_target(toy_dataset, tmp_path, words):
    config = _config(f"{words},split=global_time", toy_dataset, epochs=1)
    config.eval.batch_size = 16  # more than one, the last one partly filled
    result = train.train_and_evaluate(config, tmp_path)
    data = load(toy_dataset)
    test_from = result["split"]["test_from"]
    assert test_from == np.sort(data.timestamps)[int(0.9 * len(data.timestamps))]
    past, target = {}, {}
    for user in range(1, data.num_users):
        rows = slice(data.offsets[user], data.offsets[user + 1])
        late = data.timestamps[rows] >= test_from
        if late.any() and not late.all():
            past[data.user_ids()[user - 1]] = set(data.items[rows][~late])
            target[user] = data.items[rows][late][0]
    assert 16 < result["test"]["users"]["all"] == len(past) < data.num_users - 1
    seen = data.items[data.timestamps < result["split"]["valid_from"]]
    cold = np.bincount(seen, minlength=data.num_items) <= config.eval.cold_threshold
    assert result["test"]["users"]["cold"] == cold[list(target.values())].sum() > 0
    table = polars.read_parquet(tmp_path / "recommendations.parquet")
    assert set(table["user_id"]) == set(past)
    number = {name: n for n, name in enumerate(data.item_ids(), start=1)}
    for user, item in zip(table["user_id"], table["item_id"], strict=True):
        assert number[item] not in past[user]
    assert train.evaluate(config, tmp_path) == result


def test_no_epochs_evaluate_the_initial_state_from_which_training_may_go_on(
    finished, toy_dataset, tmp_path
):
    config = _config(MODELS[0], toy_dataset, epochs=0)
    untrained = train.train_and_evaluate(config, tmp_path / "zero")
    assert untrained["best_step"] == 0
    assert train.train_and_evaluate(config, tmp_path / "zero") == untrained
    assert train.evaluate(config, tmp_path / "zero") == untrained
    (record,) = map(json.loads, (tmp_path / "zero" / "metrics.jsonl").read_text().splitlines())
    assert record["step"] == 0
    config.train.epochs = 1
    result = train.train_and_evaluate(config, tmp_path / "zero")
    later, whole = (_latest(config, workdir) for workdir in (tmp_path / "zero", finished[0]))
    assert result["best_step"] in (0, later.step)  # the untrained one may be the best
    jax.tree.map(np.testing.assert_array_equal, later, whole)


def test_early_stopping_takes_ties_as_improvement():
    stopping = train.EarlyStopping(patience=1)
    for value, stops in [(0.2, False), (0.2, False), (0.1, False), (0.1, True)]:
        stopping.update(value)
        assert stopping.stop is stops


def test_training_stops_early_and_keeps_the_best(toy_dataset, tmp_path):
    config = _config(MODELS[0], toy_dataset, patience=0, epochs=30)
    # Makes the second evaluation worse, or ends in a tie.
    config.optim.update({"lr": 10.0, "weight_decay": 0.0, "warmup_steps": 0})
    result = train.train_and_evaluate(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    evaluations = [r for r in map(json.loads, lines) if "valid/ndcg@10" in r]
    values = [r["valid/ndcg@10"] for r in evaluations]
    assert len(evaluations) < 30
    assert values[-1] < max(values)
    best = max(evaluations, key=lambda r: (r["valid/ndcg@10"], r["step"]))
    assert result["best_step"] == best["step"]


def test_a_loss_that_is_not_a_number_ends_the_run(toy_dataset, tmp_path):
    config = _config(MODELS[0], toy_dataset)
    config.optim.visual_lr = config.optim.lr = 1e30
    with pytest.raises(UserError, match=r"the loss is nan at step .* lower optim.lr"):
        train.train_and_evaluate(config, tmp_path)


def test_another_config_or_dataset_does_not_continue_a_run(toy_dataset, tmp_path):
    options = {"epochs": 1, "batch_size": 64, "checkpoint_every": 100}
    config = _config("user=mf,item=vit_toy,dataset=toy", toy_dataset, **options)
    train.train_and_evaluate(config, tmp_path)
    config.data.threads = 1  # how fast, not what
    train.evaluate(config, tmp_path)
    config.dataset.path = str(tmp_path / "moved")
    shutil.copytree(toy_dataset, config.dataset.path)
    config.train.epochs = 2  # further
    assert train.train_and_evaluate(config, tmp_path)["best_step"]
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["files"]["images/00000.array_record"]["sha256"] = "other pictures"
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    for run in (train.train_and_evaluate, train.evaluate):
        with pytest.raises(UserError, match="was trained on other data"):
            run(config, tmp_path)
    config.optim.lr = 0.5
    for run in (train.train_and_evaluate, train.evaluate):
        with pytest.raises(UserError, match=r"another config \(optim.lr=0.002 there, 0.5 given\)"):
            run(config, tmp_path)


def test_a_config_that_could_not_start_may_be_corrected(toy_dataset, tmp_path):
    config = _config(MODELS[1], toy_dataset, epochs=0)
    config.item.weights = "nowhere.safetensors"
    with pytest.raises(UserError, match="vit_toy has no published weights"):
        train.train_and_evaluate(config, tmp_path)
    config.item.weights = ""
    train.train_and_evaluate(config, tmp_path)


def test_two_trainings_do_not_share_a_workdir(toy_dataset, tmp_path):
    config = _config(MODELS[0], toy_dataset, epochs=1)
    with (
        run_folder.claim(tmp_path, config),
        pytest.raises(UserError, match="another process is training in"),
    ):
        train.train_and_evaluate(config, tmp_path)


def test_rows_that_fill_up_the_last_batch_do_not_count(toy_dataset):
    """The loss of a partly empty batch is that of its real rows alone."""
    config = _config(MODELS[0], toy_dataset)
    experiment = build_experiment(config, devices=jax.devices()[:1])
    batch = experiment.batches[experiment.batches.steps_per_epoch - 1]
    real = int((batch.user > 0).sum())
    assert 0 < real < config.train.batch_size
    rows = {
        name: getattr(batch, name)[:, :real]
        for name in ("user", "history", "positive", "negative", "weight")
    }
    step = train.make_train_step(experiment)
    every = make_global_arrays(batch, experiment.mesh, BATCH_SPEC)
    _, whole = step(init_state(experiment), every, experiment.resident)
    alone = make_global_arrays(batch.replace(**rows), experiment.mesh, BATCH_SPEC)
    _, alone = step(init_state(experiment), alone, experiment.resident)
    np.testing.assert_allclose(whole["loss"], alone["loss"], rtol=1e-6)


def test_evaluating_what_was_not_trained_is_refused(toy_dataset, tmp_path):
    config = _config(MODELS[0], toy_dataset)
    with pytest.raises(UserError, match="holds no run"):
        train.evaluate(config, tmp_path / "nothing")


def test_a_checkpoint_that_does_not_fit_on_the_disk(toy_dataset, tmp_path):
    """A limit on the size of files stands in for the full disk: the same failure of a write."""
    workdir = tmp_path / "run"
    limit = "import resource, runpy, signal, sys; sys.argv.pop(0);"
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
    limit += "runpy.run_module('pixelrec_jax.programs.train', run_name='__main__', alter_sys=True)"
    command = _command("user=mf,item=id,dataset=toy", toy_dataset, workdir)[3:]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}  # no compile cache to write
    argv = [
        sys.executable,
        "-c",
        limit,
        "pixelrec_jax.programs.train",
        *command,
        "--config.width=256",
    ]
    ended = subprocesses.run(argv, cwd=ROOT, env=environment)
    assert ended.returncode == 2, ended.stderr
    *_, last = lines = ended.stderr.strip().splitlines()
    assert [line for line in lines if "Traceback" in line or "Error" in line] == []
    assert "could not be written" in last
    assert "none is complete; free space and start again" in last
    assert not list((workdir / "checkpoints").glob("*tmp*"))
