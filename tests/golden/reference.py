"""A golden file of the reference beside the same model of ours."""

import ast
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.slots import deduplicate
from pixelrec_jax.data.types import Batch
from pixelrec_jax.evaluation.evaluate import Ranking
from pixelrec_jax.recommender import trainable_filter
from pixelrec_jax.training.experiment import Experiment, build_experiment
from pixelrec_jax.training.state import state_template
from pixelrec_jax.weights import partition
from pixelrec_jax.weights.mapping import WeightMapping, read_weights
from tests.golden.models import IGNORED, ITEM, LAYOUTS, Case
from tests.tiny import ArrayStore, interactions_of, tiny_config

GOLDEN = Path(__file__).parent


class Golden:
    """One golden file beside the same model of ours, with the reference's parameters."""

    def __init__(self, name: str, case: Case):
        self.file = dict(np.load(GOLDEN / f"{name}.npz"))
        self.case, self.on_images = case, name.startswith("MO")
        self.data = np.load(GOLDEN / ("MOSASRec.npz" if self.on_images else "SASRec.npz"))
        self.num_items = len(self.data["data/id2token_item"])
        # Rows of the reference's validation batches are in order of the users' first interaction.
        self.order = self.data["data/user_ids"] - 1
        self.config = self._config()
        self.experiment = self._build()
        template = state_template(self.experiment)
        self.trainable_template = template.trainable
        initial, final = self.tensors("param0/"), self.tensors("param1/")
        self.params0 = self.read(initial, template.params)
        self.params1 = self.read({**initial, **final}, template.params)

    def _config(self) -> ConfigDict:
        item = "clip_vit_b32" if self.on_images else self.case.item
        config = tiny_config(f"user={self.case.user},item={item},preset=parity")
        if self.on_images:
            config.item.image_size = 32
            config.item.trainable = "block_1,block_2"
            config.item.weights = ""
        if "codebook_size" in config.item:
            config.item.codebook_size = int(self.file["input/semantic_ids"].max()) + 1
        config.eval.batch_size = 256  # all users
        config.user.update(self.case.options)
        if self.case.layout:
            groups = [group for group in ast.literal_eval(str(self.file["optim"])) if group["n"]]
            config.optim.visual_lr = groups[0]["lr"]
            config.optim.visual_weight_decay = float(groups[0]["weight_decay"])
            config.optim.lr = groups[-1]["lr"]
            config.optim.weight_decay = float(groups[-1]["weight_decay"])
        return config

    def _build(self) -> Experiment:
        """Our experiment on one device, with the reference's sequences and numbers of users."""
        length = self.data["data/user_seq_len"]
        sequences = np.split(self.data["data/user_seq_flat"], np.cumsum(length)[:-1])
        by_user = [sequences[n] for n in np.argsort(self.order)]
        interactions = interactions_of(by_user, self.num_items)
        return build_experiment(
            self.config,
            devices=jax.devices()[:1],
            interactions=interactions,
            store=self._store(),
        )

    def _store(self) -> ArrayStore | None:
        if self.on_images:
            return ArrayStore(np.load(GOLDEN / "images.npy"))
        if "input/semantic_ids" in self.file:
            return ArrayStore(self.file["input/semantic_ids"].astype(np.int32), "feature")
        if "input/v_feat" in self.file:
            return ArrayStore(self.file["input/v_feat"], "feature")
        return None

    def read(self, tensors: dict[str, np.ndarray], template: dict) -> dict:
        """Returns tensors with the reference's names as a tree of ours."""
        mapping = WeightMapping(
            "reference", self.case.rules + ITEM, ignored=(*IGNORED, *self.case.ignored)
        )
        return read_weights(tensors, (mapping,), template, origin="the golden file")

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the file's tensors below a prefix, by the reference's names."""
        return {k.removeprefix(prefix): v for k, v in self.file.items() if k.startswith(prefix)}

    @property
    def start(self) -> tuple[dict, dict]:
        """The reference's parameters ahead of the step: those that are trained, and the others."""
        return partition.partition(self.params0, trainable_filter(self.experiment.model))

    @cached_property
    def batch(self) -> Batch:
        """The reference's first batch."""
        rows = LAYOUTS[self.case.layout](self.file)
        ids = [x.reshape(1, -1) for x in (rows.history, rows.positive, rows.negative)]
        largest = self.num_items + 1  # the mask
        unique, slots = deduplicate(np.concatenate(ids, axis=1), sizes=range(1, largest + 1))
        history, positive, negative = np.split(slots, np.cumsum([x.size for x in ids])[:2], axis=1)
        return Batch(
            items=item_batch(unique, self.experiment.store),
            user=rows.user[None],
            history=history.reshape(1, *rows.history.shape),
            positive=positive.reshape(1, *rows.positive.shape),
            negative=negative.reshape(1, *rows.negative.shape),
            weight=rows.weight[None],
        )

    @cached_property
    def ranking(self) -> tuple[Ranking, np.ndarray, np.ndarray]:
        """Our ranking of all items with the parameters after the step; for the users of the
        reference's first validation batch their places in it, and their histories.
        """
        evaluator = self.experiment.evaluator
        evaluator.k = self.num_items - 1
        queries, _ = next(evaluator._queries("valid"))
        places = self.order[: len(self.file["topk"])]
        _, by_user = np.unique(queries.user, return_index=True)
        return evaluator.rank({"params": self.params1}, "valid"), places, queries.history[by_user]
