"""What a config describes, built and checked before any work starts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.config import check_values
from pixelrec_jax.data.images import RECORDS, ImageStore
from pixelrec_jax.data.interactions import Interactions, load
from pixelrec_jax.data.pipeline import TrainBatches
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.evaluate import Evaluator
from pixelrec_jax.items import uses_pixels
from pixelrec_jax.optim import build_optimizer
from pixelrec_jax.recommender import Recommender, build
from pixelrec_jax.sharding import BATCH, build_mesh, local_shards, num_shards

_INTERACTIONS = ("offsets.npy", "items.npy", "item_ids.arrow")


@dataclass(frozen=True)
class Experiment:
    """What a config describes, built."""

    config: ConfigDict
    mesh: Mesh
    interactions: Interactions
    images: ImageStore | None
    model: Recommender
    optimizer: optax.GradientTransformation
    batches: TrainBatches
    evaluator: Evaluator

    @property
    def data_fingerprint(self) -> str:
        """A hash of the content that training reads; empty for data in memory."""
        return self._fingerprint(*_INTERACTIONS, *([RECORDS] if self.images else []))

    @property
    def interactions_fingerprint(self) -> str:
        """The same without the images: what two runs must share to be compared."""
        return self._fingerprint(*_INTERACTIONS)

    def _fingerprint(self, *names: str) -> str:
        files = self.interactions.manifest.get("files", {})
        hashes = [files[name]["sha256"] for name in names if name in files]
        return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def build_experiment(
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,
    interactions: Interactions | None = None,
    images: ImageStore | None = None,
) -> Experiment:
    """Builds everything a config describes; wrong configs fail here, before any work.

    Args:
      config: as made by a file of `configs/`.
      devices: default all.
      interactions: default those of `config.dataset.path`.
      images: default those of the same folder, if the item encoder looks at pixels.
    """
    check_values(config)
    mesh = build_mesh(config.mesh, devices)
    interactions = load(config.dataset.path) if interactions is None else interactions
    model = build(config, num_items=interactions.num_items, num_users=interactions.num_users)
    if images is None and uses_pixels(config.item):
        images = ImageStore(interactions.directory, size=config.item.image_size)
    options = {key: value for key, value in config.task.items() if key != "name"}
    task = task_of(config)(interactions, **options)
    return Experiment(
        config=config,
        mesh=mesh,
        interactions=interactions,
        images=images,
        model=model,
        optimizer=build_optimizer(config.optim),
        batches=TrainBatches(
            task,
            images,
            num_items=interactions.num_items + task.masks,
            batch_size=config.train.batch_size,
            epochs=config.train.epochs,
            seed=config.seed,
            num_shards=num_shards(mesh, BATCH),
            local_shards=local_shards(mesh, BATCH),
            slot_buckets=config.data.slot_buckets,
        ),
        evaluator=Evaluator(model, interactions, images, config, mesh),
    )
