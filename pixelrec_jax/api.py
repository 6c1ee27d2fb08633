"""The functions for use in your own programs: training, evaluation, and trained models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.interactions import Interactions, load_interactions
from pixelrec_jax.evaluation.result import Result
from pixelrec_jax.recommender import Recommender, build_recommender
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.runs.run_folder import read_config
from pixelrec_jax.system import storage
from pixelrec_jax.system.start_jax import start_jax
from pixelrec_jax.training import train as training


@dataclass(frozen=True)
class Run:
    """A trained model with its config and its dataset.

    Attributes:
      config: the config of the run.
      step: the step of the best checkpoint.
      model: the recommender, a Flax module.
      variables: the variables of that checkpoint by Flax collection, for `model.apply`.
      dataset: the interactions, with the original ids of items and users.
    """

    config: ConfigDict
    step: int
    model: Recommender
    variables: dict[str, Any]
    dataset: Interactions


def train(config: ConfigDict | str, workdir: str | Path) -> Result:
    """Trains from the latest checkpoint, if any, and evaluates; returns the content of result.json.

    Args:
      config: a config, or its name as in "pixelrec:user=sasrec,item=id,dataset=toy".
      workdir: folder of the run, or a URL.

    Raises:
      UserError: wrong input.
    """
    config = load_config(config) if isinstance(config, str) else config
    workdir = storage.path(workdir)
    start_jax(workdir)
    return training.train_and_evaluate(config, workdir)


def evaluate(workdir: str | Path) -> Result:
    """Ranks the test split with the best checkpoint of a run; returns the content of result.json.

    Raises:
      UserError: the folder does not hold a run, or the run was not evaluated yet.
    """
    workdir = storage.path(workdir)
    start_jax(workdir)
    return training.evaluate(read_config(workdir), workdir)


def load_run(workdir: str | Path, *, dataset: str | Path | None = None) -> Run:
    """Returns the model of a run with the variables of its best checkpoint.

    Args:
      workdir: folder of the run, or a URL.
      dataset: folder or URL of the dataset, if it has moved since the training.

    Raises:
      UserError: the folder does not hold a run, the run was not evaluated yet, or the dataset is
        gone.
    """
    workdir = storage.path(workdir)
    start_jax(workdir)
    config = read_config(workdir)
    known = load_interactions(config.dataset.path if dataset is None else dataset)
    model = build_recommender(config, num_items=known.num_items, num_users=known.num_users)
    step, variables = best_variables(workdir, config)
    return Run(config, step, model, variables, known)
