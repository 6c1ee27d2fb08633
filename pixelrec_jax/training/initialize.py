"""The state at step 0."""

import jax

from pixelrec_jax.items.vision.pretrained import backbone_variables, read_backbone
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.state import TrainState, create_state, state_template
from pixelrec_jax.training.warm_start import read_source


def init_state(experiment: Experiment) -> TrainState:
    """Returns the state at step 0 on the mesh: random, or from the weights that the config names.

    If both are given, `warm_start.run` wins: a run holds weights of the backbone as well.
    """
    config, template = experiment.config, state_template(experiment)
    given = None
    if config.warm_start.run:
        given = read_source(config, experiment.model, template.variables)
    elif config.item.get("weights"):
        backbone = read_backbone(config.item, backbone_variables(template.variables))
        given = {name: {"item_encoder": {"backbone": tree}} for name, tree in backbone.items()}
    shardings = jax.tree.map(lambda x: x.sharding, template)
    create = jax.jit(lambda given: create_state(experiment, given), out_shardings=shardings)
    return create(given)
