"""Tiny configs and in-memory data for tests."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.types import Batch, gather_slots
from pixelrec_jax.items import ITEM_ENCODERS, vision
from pixelrec_jax.items.vision.beit import Beit
from pixelrec_jax.items.vision.clip_resnet import AttentionPool, ClipBottleneck, ClipStem
from pixelrec_jax.items.vision.clip_vit import ClipTransformer
from pixelrec_jax.items.vision.efficientnet import LITE, by_stage
from pixelrec_jax.items.vision.mobilenet import MobileNet, layer_by_layer, repeat
from pixelrec_jax.items.vision.resnet import Basic, Bottleneck, ResNet
from pixelrec_jax.items.vision.swin import Swin
from pixelrec_jax.items.vision.vit import VisionTransformer
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.users import USER_ENCODERS

ROOT = Path(__file__).parent.parent
ALL_AXES = {"data": 2, "fsdp": 2, "tensor": 2, "fsdp_min_size": 0}  # a mesh of eight devices

# A small sibling of one encoder of every architecture, with which the contracts are tested. That of
# CLIP's ViT is the tower of the golden files.
_VIT = {"width": 16, "depth": 2, "heads": 2, "patch": 8, "mlp": 32}
_BACKBONES = {
    "clip_vit_b32": partial(ClipTransformer, width=32, depth=3, heads=4, patch=8, mlp=64),
    "vit_b16": partial(VisionTransformer, **_VIT),
    "vit_toy": partial(VisionTransformer, **_VIT),
    "beit_b16": partial(Beit, **_VIT),
    "swin_t": partial(Swin, width=8, depths=(2, 1), heads=(1, 2), patch=2, window=2),
    "resnet18": partial(ResNet, Basic, (1, 1), 8),
    "resnet50": partial(ResNet, Bottleneck, (1, 1), 4),
    "clip_rn50": partial(
        ResNet,
        ClipBottleneck,
        (1, 1),
        4,
        stem=ClipStem,
        attention=partial(AttentionPool, heads=2, features=16),
    ),
    "mobilenet_v2": partial(
        MobileNet,
        layer_by_layer([*repeat(1, 4, 1, 1), *repeat(2, 8, 2, 2)]),
        stem=8,
        head=32,
    ),
    "efficientnet_lite0": partial(
        LITE,
        by_stage([repeat(1, 4, 1, 1), repeat(2, 8, 2, 2, kernel=5)]),
        stem=8,
        head=32,
    ),
}
TINY = {
    name: replace(vision.VISION_ENCODERS[name], backbone=backbone, multiple=8)
    for name, backbone in _BACKBONES.items()
}

ARCHITECTURES = [name for name in TINY if name != "vit_toy"]  # whose sibling is that of vit_b16


def items_of(user: str) -> tuple[str, ...]:
    """The item encoders that a user encoder takes; it is tested with the first."""
    return USER_ENCODERS[user].item_encoders or ITEM_ENCODERS


def tiny_config(words: str, dataset: Path | str = "") -> ConfigDict:
    """A config small enough to train in a test: D 16, no dropout, covers of 16 pixels."""
    config = load_config(f"{ROOT / 'configs' / 'pixelrec.py'}:{words}").unlock()
    config.width = 16
    if "dropout" in config.user:
        config.user.dropout = 0.0
    config.dataset.path = str(dataset)
    if "image_size" in config.item:
        config.item.image_size = 16
    config.data.workers = 0
    config.data.slot_buckets = 1  # one shape to compile
    config.train.batch_size = 16
    config.eval.batch_size = 64
    config.eval.encode_batch_size = 16
    return config


def num_targets(config: ConfigDict) -> int:
    """Returns T for histories of 10."""
    return 10 if config.task.name in ("next_item", "cloze") else 1


def use_tiny_encoders(monkeypatch):
    """Puts the small siblings in the place of the vision encoders."""
    for name, tiny in TINY.items():
        monkeypatch.setitem(vision.VISION_ENCODERS, name, tiny)


def pair_scores(model: Recommender, variables: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the scores of positives [G, B, T] and of own negatives [G, B, T, K]."""
    query, item = model.apply(variables, batch, train=False)
    positive, negative = gather_slots(item, batch.positive, batch.negative)
    score = partial(model.apply, {}, method="score")
    return score(query, positive[..., None, :])[..., 0], score(query, negative)


def interactions_of(sequences: list[np.ndarray], num_items: int) -> Interactions:
    """Interactions in memory: sequence n is that of user n + 1; ids count from 1."""
    offsets = np.concatenate([[0, 0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    items = np.concatenate(sequences).astype(np.int32)
    counts = {"items": num_items - 1, "users": len(sequences)}
    manifest = {"counts": counts, "timestamp_unit": "order"}
    return Interactions(offsets, items, np.arange(len(items)), manifest, Path())


@dataclass(frozen=True)
class ArrayStore:
    """A store over rows [N, ...] in memory; row 0 is padding, past the end are zeros."""

    rows: np.ndarray
    field: str = "image"
    fingerprint = ""
    watched = ()

    def load(self, ids: np.ndarray) -> np.ndarray:
        rows = np.zeros((*ids.shape, *self.rows.shape[1:]), self.rows.dtype)
        known = ids < len(self.rows)
        rows[known] = self.rows[ids[known]]
        return rows


def random_features(*shape: int) -> np.ndarray:
    """float32[N, ...] like those of a `FeatureStore`: row 0 is zeros."""
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    features[0] = 0
    return features


def random_store(item: ConfigDict, num_items: int, *, size: int = 16) -> ArrayStore | None:
    """What an item encoder of a tiny config looks at; features of two by two locations."""
    rng = np.random.default_rng(0)
    if "image_size" in item:
        shape = (num_items, size, size, 3)
        return ArrayStore(rng.integers(0, 256, shape).astype(np.uint8))
    if item.name == "semantic_ids":
        codes = rng.integers(0, item.codebook_size, (num_items, 3))
        return ArrayStore(codes.astype(np.int32), "feature")
    if "path" in item:
        return ArrayStore(random_features(num_items, 2, 2, 6), "feature")
    return None
