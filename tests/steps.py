"""Training steps without the loop around them."""

import numpy as np

from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import TrainState
from pixelrec_jax.training.train import make_train_step


def run_steps(
    experiment: Experiment, steps: int, state: TrainState | None = None
) -> tuple[np.ndarray, TrainState]:
    """Returns the losses of the first steps, over the batches again and again, and the state."""
    batches, step = experiment.batches, make_train_step(experiment)
    state = init_state(experiment) if state is None else state
    losses = []
    for index in range(steps):
        batch = make_global_arrays(batches[index % len(batches)], experiment.mesh, BATCH_SPEC)
        state, metrics = step(state, batch, experiment.resident)
        losses.append(float(metrics["loss"]))
    return np.array(losses), state
