"""What a config describes, built and checked before any work starts."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import Interactions, load
from pixelrec_jax.data.pipeline import TrainBatches
from pixelrec_jax.data.tasks import TASKS
from pixelrec_jax.errors import UserError, nearest
from pixelrec_jax.evaluate import Evaluator
from pixelrec_jax.items import uses_pixels
from pixelrec_jax.optim import build_optimizer
from pixelrec_jax.recommender import Recommender, build
from pixelrec_jax.sharding import BATCH, build_mesh, local_shards, num_shards


@dataclass(frozen=True)
class Experiment:
    """What a config describes, built: data, model, optimizer, mesh, and the ranking of it."""

    config: ConfigDict
    mesh: Mesh
    interactions: Interactions
    images: ImageStore | None
    model: Recommender
    optimizer: optax.GradientTransformation
    evaluator: Evaluator


def load_config(file_and_words: str) -> ConfigDict:
    """Returns the config that a file gives for words, as in "configs/pixelrec.py:item=id"."""
    values = flags.FlagValues()
    # Not named "config": ml_collections would look for that flag's overrides on the command line.
    holder = config_flags.DEFINE_config_file("loaded", file_and_words, flag_values=values)
    values.mark_as_parsed()
    return holder.value


def build_experiment(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Opens the dataset and builds everything; wrong configs fail here, before any work."""
    _check_numbers(config)
    if config.task.name not in TASKS:
        raise UserError(f"unknown task {config.task.name!r}{nearest(config.task.name, TASKS)}")
    mesh = build_mesh(config.mesh, devices)
    interactions = load(config.dataset.path)
    model = build(config, num_items=interactions.num_items)
    images = None
    if uses_pixels(config.item):
        images = ImageStore(interactions.directory, size=config.item.image_size)
    evaluator = Evaluator(model, interactions, images, config, mesh)
    optimizer = build_optimizer(config.optim)
    return Experiment(config, mesh, interactions, images, model, optimizer, evaluator)


_POSITIVE = (
    ("width",),
    ("task", "history_length", "negatives"),
    ("user", "layers", "heads", "inner"),
    ("train", "batch_size", "epochs", "eval_every", "checkpoint_every", "log_every"),
    ("eval", "batch_size", "encode_batch_size"),
    ("data", "threads", "prefetch", "slot_buckets"),
)


def _check_numbers(config: ConfigDict) -> None:
    """Raises `UserError` for a number that no run can work with."""
    for section, *keys in _POSITIVE:
        for key in keys or [section]:
            value = config[section][key] if keys else config[section]
            name = f"{section}.{key}" if keys else section
            if value < 1:
                raise UserError(f"{name}={value}; expected 1 or more")
    for name, value in (
        ("data.workers", config.data.workers),
        ("train.patience", config.train.patience),
        ("loss.epsilon", config.loss.epsilon),
    ):
        if value < 0:
            raise UserError(f"{name}={value}; expected 0 or more")
    if not 0 <= config.user.dropout < 1:
        raise UserError(f"user.dropout={config.user.dropout}; expected at least 0 and less than 1")
    if not config.eval.ks or min(config.eval.ks) < 1:
        raise UserError(f"eval.ks={tuple(config.eval.ks)}; expected cut-offs of 1 or more")
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in config.eval.ks]
    if config.eval.select not in metrics:
        raise UserError(f"eval.select={config.eval.select!r}; expected one of {', '.join(metrics)}")
    for name, dtype in (("user", config.user.dtype), ("item", config.item.get("dtype", "float32"))):
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"{name}.dtype={dtype!r}; expected float32 or bfloat16")


def training_batches(experiment: Experiment) -> TrainBatches:
    """Returns the training batches of this process, by global step."""
    config, mesh = experiment.config, experiment.mesh
    return TrainBatches(
        experiment.interactions,
        experiment.images,
        TASKS[config.task.name],
        history_length=config.task.history_length,
        negatives=config.task.negatives,
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        seed=config.seed,
        num_shards=num_shards(mesh, BATCH),
        local_shards=local_shards(mesh, BATCH),
        slot_buckets=config.data.slot_buckets,
    )
