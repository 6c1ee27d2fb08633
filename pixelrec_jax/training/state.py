"""The train state: its fields, how it is created, and how it is sharded over the mesh."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pixelrec_jax.data.mask_item import query_length
from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.data.types import Batch
from pixelrec_jax.parallel.sharding import infer_shardings
from pixelrec_jax.parallel.tables import pad_rows
from pixelrec_jax.recommender import trainable_filter
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.weights import partition


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and the frozen weights that it needs.

    Attributes:
      step: int32[], the number of updates done.
      trainable: the parameters that are differentiated and updated.
      frozen: all other parameters; `partition.merge` joins the two.
      model_state: other variables by Flax collection, such as running statistics of batch norm.
      opt_state: the state of the optimizer, which has moments of trainable parameters only.
      loss_sum: float32[], the sum of the losses since the last log line; it is here and not on the
        host so that a step does not synchronise and a run that is continued has the same sum.
      loss_count: int32[], the number of these losses.
    """

    step: jax.Array
    trainable: dict
    frozen: dict
    model_state: dict
    opt_state: Any
    loss_sum: jax.Array
    loss_count: jax.Array

    @property
    def params(self) -> dict:
        """The complete parameters."""
        return partition.merge(self.trainable, self.frozen)

    @property
    def variables(self) -> dict:
        """All variables of the model by Flax collection."""
        return {"params": self.params, **self.model_state}


def create_state(experiment: Experiment, given: dict | None = None) -> TrainState:
    """Returns a new state; the variables in `given`, by Flax collection, replace random ones.

    `jax.eval_shape` can trace it for the shapes without allocating anything.
    """
    model_state = _init_variables(experiment)
    if given is not None:
        model_state = partition.merge(model_state, given)
    params = pad_rows(model_state.pop("params", {}), experiment.mesh)
    trainable, frozen = partition.partition(params, trainable_filter(experiment.model))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        model_state=model_state,
        opt_state=experiment.optimizer.init(trainable),
        loss_sum=jnp.zeros((), jnp.float32),
        loss_count=jnp.zeros((), jnp.int32),
    )


def _init_variables(experiment: Experiment) -> dict:
    """Returns the variables of the model by Flax collection; tables are not padded yet."""
    config = experiment.config
    items = item_batch(np.zeros((1, 1), np.int32), experiment.store)
    length = query_length(task_of(config), config.task.history_length)
    slot = jnp.zeros((1, 1, length), jnp.int32)
    batch = Batch(
        items=items,
        user=jnp.zeros((1, 1), jnp.int32),
        history=slot,
        positive=slot[..., :1],
        negative=slot[..., :1, None],
        weight=jnp.zeros((1, 1, 1)),
        time=slot if experiment.model.user_encoder.needs_time else None,
    )
    return dict(experiment.model.init(jax.random.key(config.seed), batch, train=False))


@lru_cache(maxsize=2)
def count_parameters(experiment: Experiment) -> tuple[int, int]:
    """Returns how many parameters the model has and how many of them are trained."""
    params = jax.eval_shape(lambda: _init_variables(experiment)).get("params", {})
    trainable, _ = partition.partition(params, trainable_filter(experiment.model))
    total, trained = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, trainable))
    return total, trained


@lru_cache(maxsize=2)  # a run asks several times, and each time the model would be traced
def state_template(experiment: Experiment) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(lambda: create_state(experiment))
    min_size = experiment.config.mesh.fsdp_min_size
    shardings = infer_shardings(shapes, experiment.mesh, min_size=min_size)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def start_line(experiment: Experiment, start: int) -> str:
    """Returns one line that names model, dataset, devices and the step that the run starts from."""
    config, data = experiment.config, experiment.interactions
    total, trained = count_parameters(experiment)
    return (
        f"{config.user.name} with item={config.item.name}: {total:,} parameters, "
        f"{trained:,} trained | {config.dataset.name}: {data.num_users - 1:,} users, "
        f"{data.num_items - 1:,} items, {experiment.batches.steps_per_epoch:,} steps an epoch of "
        f"{config.train.batch_size} examples | {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s)"
        + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
        + (f" | continuing from step {start:,}" if start else "")
    )


def microbatches_line(experiment: Experiment) -> str | None:
    """Returns one line that says how many items are encoded again, None if there are none."""
    count = experiment.config.train.microbatches
    if count == 1 or experiment.store is None:
        return None
    encoded, distinct = experiment.batches.count_encoded(0)
    return (
        f"each step in {count} microbatches: an item that several of them have is encoded in each, "
        f"{encoded:,} items instead of {distinct:,} in the first step"
    )
