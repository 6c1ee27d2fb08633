"""Training steps without the loop around them."""

import jax
import numpy as np

from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.recommender import trainable_filter
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import TrainState, state_template
from pixelrec_jax.training.step import make_train_step
from pixelrec_jax.weights.partition import partition


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


def draw_variables(shapes: dict) -> dict:
    """Returns random variables of these shapes, in memory of the host.

    No compiled program makes them: most of a model's first compilation is that of random numbers.
    """
    rng = np.random.default_rng(0)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        spread = 1 / np.sqrt(np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.02
        return rng.normal(scale=spread, size=x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_state(experiment: Experiment) -> TrainState:
    """Returns a random state at step 0, in memory of the host.

    That all meshes start alike shows in the first losses of
    `test_train_step.test_losses_are_those_of_one_device`.
    """
    template = state_template(experiment)
    return start_state(
        experiment,
        draw_variables({"params": template.params, **template.model_state}),
    )


def start_state(experiment: Experiment, variables: dict) -> TrainState:
    """Returns the state at step 0 with these variables, in memory of the host."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state_template(experiment))
    model_state = dict(variables)
    params = model_state.pop("params")
    trainable, frozen = partition(params, trainable_filter(experiment.model))
    return zeros.replace(trainable=trainable, frozen=frozen, model_state=model_state)


def place_state(state: TrainState, experiment: Experiment) -> TrainState:
    """Returns the same state on the mesh of an experiment, whose tables may have more rows."""

    def place(x: np.ndarray, there: jax.ShapeDtypeStruct) -> jax.Array:
        whole = np.zeros(there.shape, there.dtype)
        whole[tuple(map(slice, x.shape))] = x
        return jax.device_put(whole, there.sharding)

    return jax.tree.map(place, state, state_template(experiment))
