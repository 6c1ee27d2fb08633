"""Experiments: everything that a config describes, built and checked before any work starts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.configs.checks import check_values
from pixelrec_jax.data.features import FeatureStore, locate
from pixelrec_jax.data.graph import Resident, training_graph
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import Interactions, load_interactions
from pixelrec_jax.data.mask_item import mask_item_of, num_ids
from pixelrec_jax.data.negatives import build_negatives
from pixelrec_jax.data.pipeline import ItemStore, TrainBatches
from pixelrec_jax.data.split import LEAVE_ONE_OUT, Split, build_split
from pixelrec_jax.data.tasks import build_task
from pixelrec_jax.data.types import Items
from pixelrec_jax.data.watched_file import check_all
from pixelrec_jax.evaluation.evaluate import Evaluator
from pixelrec_jax.items import uses_features, uses_pixels
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.parallel.sharding import (
    BATCH_SPEC,
    build_mesh,
    local_shards,
    make_replicated_arrays,
    num_shards,
    shapes,
)
from pixelrec_jax.recommender import Recommender, build_recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.optim import AdamW

# A batch up to that of any shipped config may be larger than a tiny dataset: its padding is cheap.
_SMALL_BATCH = 1024
_INTERACTIONS = ("offsets.npy", "items.npy", "item_ids.arrow")


@dataclass(frozen=True, eq=False)  # equal to itself only, so that results can be kept by it
class Experiment:
    """Everything that a config describes, built.

    Attributes:
      store: the images or features that the item encoder reads, None if it reads ids only.
      resident: constant arrays that stay on the devices beside the state.
    """

    config: ConfigDict
    mesh: Mesh
    split: Split
    store: ItemStore | None
    resident: Resident
    model: Recommender
    optimizer: AdamW
    batches: TrainBatches
    evaluator: Evaluator

    @property
    def interactions(self) -> Interactions:
        """All interactions, including the held-out ones."""
        return self.split.interactions

    @property
    def data_fingerprint(self) -> str:
        """A hash of all data that training reads; "" for data in memory."""
        times = self.batches.time_offsets
        return self._fingerprint(
            self.store.fingerprint if self.store else "", times.fingerprint if times else ""
        )

    @property
    def interactions_fingerprint(self) -> str:
        """A hash of the interactions: two runs can be compared if they share it."""
        return self._fingerprint()

    def check_files(self) -> None:
        """Raises `UserError` if a file of the dataset is not what it was when the run began."""
        check_all((*self.interactions.watched, *(self.store.watched if self.store else ())))

    def _fingerprint(self, *of_inputs: str) -> str:
        files = self.interactions.manifest.get("files", {})
        # Times change a split only if it is by time; their order is that of the items.
        by_time = ("timestamps.npy",) if self.split.settings != LEAVE_ONE_OUT else ()
        hashes = [files[name]["sha256"] for name in (*_INTERACTIONS, *by_time) if name in files]
        hashes += filter(None, of_inputs)
        return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def build_experiment(
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,
    interactions: Interactions | None = None,
    store: ItemStore | None = None,
    compile_only: bool = False,
) -> Experiment:
    """Builds everything that a config describes; a wrong config fails here, before any work.

    Args:
      config: a config of `load_config`.
      devices: the devices of the mesh; by default all.
      interactions: by default those of `config.dataset.path`.
      store: by default the images or features in the same folder, if the item encoder reads any.
      compile_only: the devices belong to a topology and cannot hold arrays: `resident` has shapes.
    """
    check_values(config)
    mesh = build_mesh(config.mesh, devices)
    interactions = load_interactions(config.dataset.path) if interactions is None else interactions
    split = build_split(interactions, config.dataset.split)
    model = build_recommender(
        config, num_items=interactions.num_items, num_users=interactions.num_users
    )
    store = _open_store(config.item, interactions) if store is None else store
    _check_lazy_tables(config, model)
    _check_microbatches(config, model)
    optimizer = AdamW(config.optim, mesh)
    task = build_task(config, split)
    shards = num_shards(mesh, BATCH_SPEC)
    if not compile_only:  # a dry run has only a few examples
        _check_batch_size(config.train.batch_size, len(task), shards)
    batches = TrainBatches(
        task,
        store,
        negatives=build_negatives(config, task),
        num_items=num_ids(interactions.num_items, mask_item_of(type(task), interactions.num_items)),
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        seed=config.seed,
        num_shards=shards,
        local_shards=local_shards(mesh, BATCH_SPEC),
        slot_buckets=config.data.slot_buckets,
        microbatches=config.train.microbatches,
        needs_time=model.user_encoder.needs_time,
    )
    resident = Resident(training_graph(split) if model.user_encoder.uses_graph else None)
    resident = (shapes if compile_only else make_replicated_arrays)(resident, mesh)
    return Experiment(
        config=config,
        mesh=mesh,
        split=split,
        store=store,
        resident=resident,
        model=model,
        optimizer=optimizer,
        batches=batches,
        evaluator=Evaluator(model, split, store, resident, config, mesh),
    )


def _check_batch_size(batch_size: int, examples: int, shards: int) -> None:
    """Raises `UserError` for a batch that all examples cannot fill: its padding takes memory."""
    largest = -(-examples // shards) * shards
    if batch_size > max(largest, _SMALL_BATCH):
        raise UserError(
            f"train.batch_size={batch_size} is more than the {examples:,} examples of the dataset; "
            f"give {largest} or less"
        )


def _check_lazy_tables(config: ConfigDict, model: Recommender) -> None:
    """Raises `UserError` if tables are to be lazy and the model has none with looked-up rows."""
    one = np.zeros((1, 1), np.int32)
    if config.optim.lazy_tables and not model.embedding_lookups(items=Items(id=one), user=one):
        raise UserError(
            f"optim.lazy_tables=True, but in user={config.user.name} with item={config.item.name} "
            "no step reads single rows of a table; leave it at False"
        )


def _check_microbatches(config: ConfigDict, model: Recommender) -> None:
    """Raises `UserError` if microbatches would give another result than the whole batch."""
    if config.train.microbatches == 1:
        return
    given, encoder = f"train.microbatches={config.train.microbatches}", model.item_encoder
    if isinstance(encoder, PixelEncoder) and encoder.backbone.uses_batch_statistics:
        raise UserError(
            f"{given}, but batch norm in trained blocks of item={config.item.name} needs the whole "
            "batch; set item.frozen_statistics=True, or leave one microbatch"
        )
    if config.loss.get("single_row"):
        raise UserError(f"{given}, but loss.single_row=True reads a single row; leave one of them")


def _open_store(item: ConfigDict, interactions: Interactions) -> ItemStore | None:
    if uses_pixels(item):
        return ImageStore(interactions.directory, size=item.image_size)
    if uses_features(item):
        path = locate(item.path, interactions.directory)
        return FeatureStore(path, interactions, codes=item.get("codebook_size", 0))
    return None
