"""Joint training of item and user encoder: the loop around the steps."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from pixelrec_jax.data.workers import iterate
from pixelrec_jax.evaluation.result import Result
from pixelrec_jax.parallel.distributed import check_equal, in_first_process, wait_for_all
from pixelrec_jax.parallel.preemption import stop_request
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.goodput import Goodput
from pixelrec_jax.runs.profile import Profiler
from pixelrec_jax.runs.progress import TrainingProgress, format_metrics
from pixelrec_jax.runs.resume import restore_newest
from pixelrec_jax.runs.writers import check_writers
from pixelrec_jax.system.console import progress_bar, status
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.early_stopping import EarlyStopping
from pixelrec_jax.training.experiment import Experiment, build_experiment
from pixelrec_jax.training.final_ranking import finish, restore
from pixelrec_jax.training.flops import StepFlops
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.record import StepRecord, check_finite
from pixelrec_jax.training.state import (
    TrainState,
    microbatches_line,
    start_line,
    state_template,
)
from pixelrec_jax.training.step import make_train_step


def train_and_evaluate(config: ConfigDict, workdir: Path) -> Result:
    """Trains from the workdir's latest checkpoint, then ranks the test split with the best one.

    Returns:
      The content of result.json.
    """
    experiment = _build(config, workdir)
    template = state_template(experiment)  # a wrong model fails before the workdir is touched
    if config.train.epochs and not template.trainable:
        raise UserError(f"user={config.user.name} has nothing to train; give train.epochs=0")
    with ExitStack() as stack:
        stack.enter_context(in_first_process(run_folder.claim, workdir, config))
        _check_shared(workdir)
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", metric=config.eval.monitor)
        )
        seconds_per_epoch = None
        if config.train.epochs == 0 and checkpoints.latest is None:
            keep_untrained(experiment, checkpoints, workdir)
        else:
            seconds_per_epoch = train(experiment, checkpoints, workdir)
        return finish(experiment, checkpoints, workdir, seconds_per_epoch)


def evaluate(config: ConfigDict, workdir: Path) -> Result:
    """Ranks the test split with the best checkpoint of a workdir that holds this config.

    Returns:
      The content of result.json.
    """
    run_folder.check_same(workdir, config)
    if jax.process_index() == 0:
        run_folder.check_writable(workdir)
    experiment = _build(config, workdir)
    directory = workdir / "checkpoints"
    with Checkpoints(directory, metric=config.eval.monitor, read_only=True) as checkpoints:
        return finish(experiment, checkpoints, workdir)


def keep_untrained(experiment: Experiment, checkpoints: Checkpoints, workdir: Path) -> None:
    """Evaluates the initial state and saves it as the best checkpoint, for `train.epochs=0`."""
    config = experiment.config
    stopping, progress = EarlyStopping(config.train.patience), _progress(experiment, start=0)
    with in_first_process(run_folder.MetricsLog, workdir, continue_from=0, config=config) as log:
        progress.say(start_line(experiment, start=0))
        with status("making the initial state"):
            state = init_state(experiment)
        with progress_bar("evaluating", experiment.evaluator.parts("valid")) as advance:
            values = _validate(experiment, state, stopping, advance)
        scalars = {f"valid/{name}": value for name, value in values.items()}
        progress.say(f"untrained, {format_metrics(values)}")
        if log:
            log.write(0, {"epoch": 0.0, **scalars})
            log.flush()
        metadata = _metadata(experiment, stopping, next_batch=0)
        checkpoints.save(0, state, metadata, values)
    checkpoints.wait()


def train(experiment: Experiment, checkpoints: Checkpoints, workdir: Path) -> float | None:
    """Runs the training loop from the newest whole checkpoint, or from the start, to its end.

    Returns:
      The seconds an epoch without its evaluations; None if there was nothing left to do.
    """
    config, batches = experiment.config, experiment.batches
    stopping, start = EarlyStopping(config.train.patience), 0
    state: TrainState | None = None
    lines: list[str] = []
    if checkpoints.latest is not None:
        with status(f"reading the checkpoint of step {checkpoints.latest:,}"):
            step, state, lines = restore_newest(
                checkpoints, partial(restore, experiment, checkpoints)
            )
        metadata = checkpoints.metadata(step)
        stopping = EarlyStopping(config.train.patience, **metadata["early_stopping"])
        start = metadata["next_batch"]
    progress = _progress(experiment, start)
    for line in (*lines, start_line(experiment, start), microbatches_line(experiment)):
        if line is not None:
            progress.say(line)
    if state is None:
        with status("making the initial state"):
            state = init_state(experiment)
    train_step = make_train_step(experiment)
    with (
        stop_request(progress.stopping) as stop,
        in_first_process(run_folder.MetricsLog, workdir, continue_from=start, config=config) as log,
        Goodput(log.kept if log else {}, log.dropped if log else {}) as goodput,
        progress.showing(goodput),
        Profiler(config.profile.start, config.profile.steps, workdir / "profile") as profiler,
        iterate(
            batches,
            start=start,
            stop=start if stopping.stop else max(start, len(batches)),
            workers=config.data.workers,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        ) as iterator,
    ):
        record = StepRecord(experiment, progress, log, goodput)
        count_flops = StepFlops(experiment, make_train_step)
        for step, local in enumerate(goodput.waits(iterator), start=start + 1):
            with goodput.phase("step"), profiler.step(step):
                progress.shape(local.items.id.shape)
                batch = make_global_arrays(local, experiment.mesh, BATCH_SPEC)
                state, metrics = train_step(state, batch, experiment.resident)
                record.fetch()  # metrics of step - 1, while the devices compute this step
                record.put(step, metrics, local, count_flops(batch) if log else 0.0)

            interrupted = stop.applies_to(step)  # read once: a signal can come at any time
            epoch, in_epoch = divmod(step, batches.steps_per_epoch)
            end_of_epoch = in_epoch == 0 and epoch % config.train.eval_every == 0
            evaluated = end_of_epoch or step == len(batches)
            if not (evaluated or interrupted or step % config.train.checkpoint_every == 0):
                continue
            values = None
            check_finite(metrics, state, step, record.describe_batch)
            experiment.check_files()
            if evaluated:
                with record.evaluation(experiment.evaluator.parts("valid")) as advance:
                    values = _validate(experiment, state, stopping, advance)
            record.fetch(values)
            record.flush()  # before the save: a run that continues from it starts after this step
            with goodput.phase("save"):
                metadata = _metadata(experiment, stopping, next_batch=step)
                checkpoints.save(step, state, metadata, values)
            if interrupted:
                checkpoints.wait()
                wait_for_all("saved")
                progress.say(f"step {step} is saved; the same command continues from there")
                raise KeyboardInterrupt
            if stopping.stop:
                progress.say(f"stopped early: no improvement in {stopping.since_best} evaluations")
                break
        seconds = record.seconds_per_epoch()
    checkpoints.wait()
    return seconds


def _check_shared(workdir: Path) -> None:
    """Raises `UserError` in processes that do not see the files of process 0 in the workdir."""
    if jax.process_count() > 1:
        wait_for_all("claimed")
        if not (workdir / "config.json").exists():
            raise UserError(
                f"process {jax.process_index()} does not see what process 0 writes to "
                f"--workdir={workdir}; give a folder on storage that all processes share"
            )


def _build(config: ConfigDict, workdir: Path) -> Experiment:
    """Returns the experiment of a config, after a check that it is the same in all processes."""
    check_equal("--workdir", str(workdir))
    check_equal("config", json.dumps(run_folder.to_json(config)))
    check_writers(config.log.writers)
    with status(f"reading {config.dataset.path}"):
        experiment = build_experiment(config)
    check_equal("dataset", experiment.data_fingerprint)
    return experiment


def _progress(experiment: Experiment, start: int) -> TrainingProgress:
    batches = experiment.batches
    return TrainingProgress(
        start=start,
        total=len(batches),
        steps_per_epoch=batches.steps_per_epoch,
        eval_every=experiment.config.train.eval_every,
    )


def _validate(
    experiment: Experiment,
    state: TrainState,
    stopping: EarlyStopping,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """Returns the validation metrics by name and passes the monitored one to `stopping`."""
    evaluator = experiment.evaluator
    metrics = evaluator.metrics(evaluator.rank(state.variables, "valid", advance))["all"]
    values = {}
    for name, estimate in metrics.items():
        assert estimate["value"] is not None, "every holdout of a split has users"
        values[name] = estimate["value"]
    stopping.update(values[experiment.config.eval.monitor])
    return values


def _metadata(experiment: Experiment, stopping: EarlyStopping, *, next_batch: int) -> dict:
    """Returns the metadata of a checkpoint: what a run needs beside the state to continue."""
    return {
        "config": run_folder.storable(experiment.config),
        "data_fingerprint": experiment.data_fingerprint,
        "next_batch": next_batch,
        "early_stopping": {"best": stopping.best, "since_best": stopping.since_best},
    }
