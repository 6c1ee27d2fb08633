"""The state of a run: its parts, how it is created, and where it lives on the mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pixelrec_jax import freeze, weights
from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.errors import UserError
from pixelrec_jax.experiment import Experiment
from pixelrec_jax.items.vision import VISION
from pixelrec_jax.sharding import infer_shardings


@struct.dataclass
class TrainState:
    """Everything that training changes, and the frozen weights it needs.

    Attributes:
      step: int32[], updates done.
      trainable: parameters that are differentiated and updated.
      frozen: parameters that are neither; `freeze.merge` joins the two.
      opt_state: optimizer moments, of trainable parameters only.
      loss_sum: float32[], sum of the losses since the last log line; kept here and not on the host
        so that a step needs no synchronisation and an interrupted sum continues exactly.
    """

    step: jax.Array
    trainable: dict
    frozen: dict
    opt_state: Any
    loss_sum: jax.Array

    @property
    def params(self) -> dict:
        """The complete parameters."""
        return freeze.merge(self.trainable, self.frozen)


def create_state(experiment: Experiment, pretrained: dict | None = None) -> TrainState:
    """Returns a new state; `pretrained` replaces the random weights of the vision trunk.

    Traceable: `jax.eval_shape` of it gives the shapes without allocating anything.
    """
    config, model = experiment.config, experiment.model
    size = config.item.image_size if experiment.images else 0
    image = jnp.zeros((1, 1, size, size, 3), jnp.uint8) if experiment.images else None
    slot = jnp.zeros((1, 1, config.task.history_length), jnp.int32)
    batch = Batch(
        items=Items(id=jnp.zeros((1, 1), jnp.int32), image=image),
        user=jnp.zeros((1, 1), jnp.int32),
        history=slot,
        positive=slot[..., :1],
        negative=slot[..., :1, None],
        weight=jnp.zeros((1, 1, 1)),
    )
    params = model.init(jax.random.key(config.seed), batch, train=False)["params"]
    if pretrained is not None:
        params = {**params, "item_encoder": {**params["item_encoder"], "trunk": pretrained}}
    trainable, frozen = freeze.partition(params, trainable_filter(experiment))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        opt_state=experiment.optimizer.init(trainable),
        loss_sum=jnp.zeros((), jnp.float32),
    )


def trainable_filter(experiment: Experiment) -> Callable[[str], bool]:
    """Returns whether the parameter at an "a/b/c" path is trained under `item.trainable`."""
    if not experiment.images:
        return lambda path: True
    blocks = experiment.model.item_encoder.trunk.blocks
    tuned = freeze.trainable_blocks(experiment.config.item.trainable, blocks)

    def is_trainable(path: str) -> bool:
        parts = path.split("/")
        return parts[:2] != ["item_encoder", "trunk"] or parts[2] in tuned

    return is_trainable


def state_template(experiment: Experiment) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(lambda: create_state(experiment))
    shardings = infer_shardings(shapes, experiment.mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(experiment: Experiment) -> TrainState:
    """Returns the state at step 0 on the mesh, with pretrained weights if the config names some."""
    template = state_template(experiment)
    pretrained = None
    if experiment.images and (source := experiment.config.item.weights):
        rules = VISION[experiment.config.item.name].rules
        if rules is None:
            name = experiment.config.item.name
            raise UserError(f"{name} has no published weights; set item.weights=''")
        trunk = template.params["item_encoder"]["trunk"]
        path = weights.locate(source)
        pretrained = weights.port(weights.read_safetensors(path), rules, trunk, origin=str(path))
    shardings = jax.tree.map(lambda x: x.sharding, template)
    create = jax.jit(lambda trunk: create_state(experiment, trunk), out_shardings=shardings)
    return create(pretrained)
