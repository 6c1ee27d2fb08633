"""A description of a config, to read before a run is started."""

from ml_collections import ConfigDict

from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.redact import redacted
from pixelrec_jax.training.experiment import Experiment, build_experiment
from pixelrec_jax.training.state import count_parameters


def describe_config(config: ConfigDict) -> str:
    """Returns lines: each key with its value and meaning, then the model and the training.

    Reads the prepared dataset, but does not allocate parameters or write anything.

    Raises:
      UserError: a run with this config could not start.
    """
    experiment = build_experiment(config)
    values = {key: repr(value) for key, value in flatten(redacted(config.to_dict())).items()}
    width = max(len(f"{key} = {value}") for key, value in values.items())
    lines = [f"{f'{key} = {value}':{width}}  # {meaning(key)}" for key, value in values.items()]
    return "\n".join([*lines, "", *_facts(experiment)])


def _facts(experiment: Experiment) -> list[str]:
    config, batches = experiment.config, experiment.batches
    total, trained = count_parameters(experiment)
    encoder = experiment.model.item_encoder
    facts = {
        "model": f"{config.user.name} with item={config.item.name}",
        "parameters": f"{total:,}, {trained:,} of them trained ({trained / max(total, 1):.1%})",
    }
    if isinstance(encoder, PixelEncoder):
        frozen = [x for x in encoder.backbone.blocks if x not in encoder.trainable_blocks]
        facts["trained blocks"] = ", ".join(encoder.trainable_blocks) or "none"
        facts["frozen blocks"] = ", ".join(frozen) or "none"
    facts |= {
        "examples": f"{len(batches.task):,}",
        "steps an epoch": f"{batches.steps_per_epoch:,} of {batches.batch_size:,} examples",
        "steps": f"{len(batches):,} at most, {batches.epochs:,} epochs",
        "devices": f"{experiment.mesh.size}, {batches.num_shards} data shards",
    }
    return [f"{name}: {fact}" for name, fact in facts.items()]
