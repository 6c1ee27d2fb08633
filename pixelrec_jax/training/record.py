"""Recording of training steps: metrics are fetched one step late, so that no device waits."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars

from pixelrec_jax.data.types import PAD, Array, Batch
from pixelrec_jax.items import uses_pixels
from pixelrec_jax.runs.goodput import Goodput
from pixelrec_jax.runs.progress import Speed, TrainingProgress, format_metrics
from pixelrec_jax.runs.run_folder import MetricsLog
from pixelrec_jax.system.chips import peaks_of
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import clean_line
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.frozen_blocks import FrozenBlocks
from pixelrec_jax.training.state import TrainState, state_template

_SHOWN = 5  # ids of users and items that an error names


class StepRecord:
    """Holds the metrics of the latest step; `fetch` waits for them and records them.

    A loop that fetches a step after it has dispatched the next one keeps the devices busy without a
    queue of batches.
    """

    def __init__(
        self,
        experiment: Experiment,
        progress: TrainingProgress,
        log: MetricsLog | None,
        goodput: Goodput,
    ):
        """Starts to record every `train.log_every` steps; `log` is None outside process 0."""
        batches, self._experiment = experiment.batches, experiment
        self._batches_per_local = batches.num_shards // len(batches.local_shards)
        self._log_every = experiment.config.train.log_every
        self._steps_per_epoch = batches.steps_per_epoch
        self._progress, self._log, self._goodput = progress, log, goodput
        device = experiment.mesh.devices.flat[0]
        peaks = peaks_of(device.device_kind)
        self._speed = Speed(
            batches_per_local=batches.num_shards / len(batches.local_shards),
            devices=experiment.mesh.size,
            peak=peaks.flops if peaks else None,
        )
        self._rates: dict[str, float] = {}  # read when an evaluation starts, empty otherwise
        self._latest = 0  # the latest step that this process did
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._interactions = experiment.interactions
        self._ids: tuple[Array, Array] | None = None  # users and items of the latest batch

    def put(self, step: int, metrics: dict[str, jax.Array], local: Batch, flops: float) -> None:
        """Takes the metrics of a dispatched step, the local batch, and the step's operations."""
        if flops and not self._latest and uses_pixels(self._experiment.config.item):
            self._say_saving(flops, images=self._batches_per_local * local.items.id.size)
        self._pending, self._latest = (step, metrics), step
        self._ids = local.user, local.items.id
        self._speed.count(local, flops)
        self._progress.step(step)

    def _say_saving(self, flops: float, images: int) -> None:
        """Says once what cached activations would save of a streaming run's steps."""
        experiment = self._experiment
        if experiment.activations is None:
            variables = state_template(experiment).variables
            if line := FrozenBlocks(experiment).saving(variables, flops, images):
                self._progress.say(line)

    @contextmanager
    def evaluation(self, parts: int) -> Generator[Callable[[int], None]]:
        """Counts the time inside the with statement as evaluation, not as training.

        Yields a function that advances the display by a number of the evaluation's parts.
        """
        self._rates = self._speed.read()
        with self._goodput.phase("evaluation"), self._progress.evaluation(parts) as advance:
            yield advance
        self._speed.read()

    def fetch(self, values: dict[str, float] | None = None) -> None:
        """Fetches the metrics of the latest `put`, and records them at every `log_every`-th step.

        Args:
          values: metrics of an evaluation after this step; the step is then always recorded.

        Raises:
          UserError: the loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(metrics["loss"]):
            raise _diverged(f"the loss is {metrics['loss']} at step {step}", self.describe_batch())
        if step % self._log_every and values is None:
            return
        scalars = {"train/loss": metrics.pop("mean_loss")}
        scalars |= {f"train/{name}": metrics[name] for name in metrics if name != "loss"}
        scalars |= self._rates or self._speed.read()
        self._rates = {}
        self._progress.status(step, scalars)
        if values is not None:
            scalars |= {f"valid/{name}": value for name, value in values.items()}
            epoch = step // self._steps_per_epoch
            self._progress.say(f"epoch {epoch}, {format_metrics(values)}")
        scalars |= self._goodput.scalars()
        if self._log:
            self._log.write(step, {"epoch": step / self._steps_per_epoch, **scalars})

    def describe_batch(self) -> str:
        """Returns how many users and items the latest batch of this process has, and some ids."""
        assert self._ids is not None, "a batch was put"
        data, (users, items) = self._interactions, self._ids
        return (
            f"{_some(users, data.user_ids(), 'users')} and {_some(items, data.item_ids(), 'items')}"
        )

    def seconds_per_epoch(self) -> float | None:
        """Returns the time of an epoch's input and steps; None if no step was done."""
        if not self._latest:
            return None
        seconds = self._goodput.scalars()
        trained = seconds["time/input"] + seconds["time/step"]
        return trained * self._steps_per_epoch / self._latest

    def flush(self) -> None:
        """Writes all records to storage."""
        if self._log:
            self._log.flush()


def check_finite(
    metrics: dict[str, jax.Array], state: TrainState, step: int, describe_batch: Callable[[], str]
) -> None:
    """Raises `UserError` if what a step computed is not finite: its loss, or a part of the state.

    The sum of squares of a parameter counts: where that overflows, so does every score. This waits
    until the step is computed.
    """
    if not math.isfinite(loss := float(metrics["loss"])):
        raise _diverged(f"the loss is {loss} at step {step}", describe_batch())
    if not _norms_finite((state.trainable, state.model_state)):
        raise _diverged(f"a parameter or its square is not finite after step {step}")
    if not _all_finite(state.opt_state):
        raise _diverged(f"a moment of the optimizer is not finite after step {step}")


@jax.jit
def _norms_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree)]))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _some(indices: Array, ids: polars.Series, what: str) -> str:
    """Returns how many distinct indices there are and the first ids, as in "2 users (a, b)"."""
    known = np.unique(indices[(indices != PAD) & (indices <= len(ids))])  # without the mask item
    shown = [clean_line(str(ids[int(index) - 1]), width=40) for index in known[:_SHOWN]]
    return f"{len(known)} {what} ({', '.join(shown)}{', …' if len(known) > _SHOWN else ''})"


def _diverged(problem: str, batch: str = "") -> UserError:
    """Returns the error for numbers that are not finite."""
    where = f", in a batch of {batch}" if batch else ""
    return UserError(
        f"{problem}{where}; lower optim.lr or set optim.clip_norm, in a new workdir (all "
        "checkpoints here are of earlier steps)"
    )
