"""The end of a run: the test split ranked with the best checkpoint."""

from pathlib import Path
from typing import cast

import jax

from pixelrec_jax.evaluation.recommendations import write_ranks, write_test_top_k
from pixelrec_jax.evaluation.result import RESULT, Result, SplitSettings
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.machine import write_machine_record
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.cached import with_activations
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.state import TrainState, count_parameters, state_template


def restore(experiment: Experiment, checkpoints: Checkpoints, step: int) -> TrainState:
    """Returns the state of the checkpoint of a step.

    Raises:
      UserError: the checkpoint was trained on other data, or it is damaged.
    """
    if checkpoints.metadata(step)["data_fingerprint"] != experiment.data_fingerprint:
        raise UserError(
            f"{checkpoints.directory} was trained on other data than "
            f"{experiment.config.dataset.path} holds now; restore that dataset or use another "
            "workdir"
        )
    return checkpoints.restore(step, state_template(experiment))


def finish(
    experiment: Experiment,
    checkpoints: Checkpoints,
    workdir: Path,
    seconds_per_epoch: float | None = None,
) -> Result:
    """Ranks the test split with the best checkpoint and writes the files of a finished run.

    Returns:
      The content of result.json; nothing in it depends on the machine.
    """
    if checkpoints.best is None:
        raise UserError(
            f"{workdir} holds no evaluated checkpoint yet; train with --mode=train first"
        )
    state = restore(experiment, checkpoints, checkpoints.best)
    experiment = with_activations(experiment, state.variables)
    evaluator = experiment.evaluator
    with progress_bar("ranking the test items", evaluator.parts("test")) as advance:
        ranking = evaluator.rank(state.variables, "test", advance)
    experiment.check_files()
    total, trained = count_parameters(experiment)
    result: Result = {
        "model": {
            "user": experiment.config.user.name,
            "item": experiment.config.item.name,
            "parameters": total,
            "trainable_parameters": trained,
        },
        "dataset": experiment.config.dataset.name,
        "interactions": experiment.interactions_fingerprint,
        "split": cast(SplitSettings, dict(experiment.split.settings)),
        "best_step": int(state.step),
        "test": evaluator.report(ranking, "test"),
    }
    if jax.process_index() == 0:
        write_test_top_k(workdir, experiment.interactions, ranking)
        write_ranks(workdir, experiment.split, ranking)
        write_machine_record(workdir, seconds_per_epoch)
        RESULT.write(workdir / RESULT.name, result)
    return result
