"""Training steps without the loop around them."""

import numpy as np

from pixelrec_jax.experiment import Experiment
from pixelrec_jax.sharding import BATCH, to_global
from pixelrec_jax.state import TrainState, init_state
from pixelrec_jax.train import make_train_step


def run_steps(
    experiment: Experiment, steps: int, state: TrainState | None = None
) -> tuple[np.ndarray, TrainState]:
    """Returns the losses of the first steps, over the batches again and again, and the state."""
    batches, step = experiment.batches, make_train_step(experiment)
    state = init_state(experiment) if state is None else state
    losses = []
    for index in range(steps):
        batch = to_global(batches[index % len(batches)], experiment.mesh, BATCH)
        state, loss = step(state, batch, experiment.graph)
        losses.append(float(loss))
    return np.array(losses), state
