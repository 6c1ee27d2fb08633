"""Every shipped config builds, and trains the parameters of the papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.configs import pixelrec
from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.items import FEATURES, ITEM_ENCODERS
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.recommender import build_recommender, trainable_filter
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from pixelrec_jax.users import USER_ENCODERS
from pixelrec_jax.weights.partition import partition
from tests.tiny import items_of, num_targets, random_store


def test_every_encoder_has_a_config_and_every_config_an_encoder():
    assert set(pixelrec.USERS) == set(USER_ENCODERS)
    assert set(pixelrec.ITEMS) == set(ITEM_ENCODERS)
    assert set(ITEM_ENCODERS) == {"id", *FEATURES, *VISION_ENCODERS}


@pytest.mark.parametrize(
    ("user", "item", "dataset"),
    [(user, items_of(user)[0], name) for user in pixelrec.USERS for name in pixelrec.DATASETS]
    + [(user, "features", "custom") for user in pixelrec.USERS if "features" in items_of(user)]
    + [("sasrec", item, "custom") for item in pixelrec.ITEMS],
)
def test_every_config_builds(user, item, dataset):
    config = pixelrec.get_config(f"user={user},item={item},dataset={dataset}")
    store = random_store(config.item, num_items=2, size=config.item.get("image_size", 0))
    items = item_batch(np.array([[0, 1]], np.int32), store)
    targets = num_targets(config)
    batch = Batch(
        items=items,
        user=jax.ShapeDtypeStruct((1, 3), jnp.int32),
        history=jax.ShapeDtypeStruct((1, 3, 10), jnp.int32),
        positive=jax.ShapeDtypeStruct((1, 3, targets), jnp.int32),
        negative=jax.ShapeDtypeStruct((1, 3, targets, 1), jnp.int32),
        weight=jax.ShapeDtypeStruct((1, 3, targets), jnp.float32),
    )
    model = build_recommender(config, num_items=100, num_users=5)

    def scores(batch):
        (query, item), _ = model.init_with_output(jax.random.key(0), batch, train=False)
        return model.apply({}, query, item[:, None, None, :1], method="score")

    assert jax.eval_shape(scores, batch).shape == (1, 3, targets, 1)


@pytest.mark.parametrize("user", pixelrec.USERS)
def test_settings_for_own_data_are_the_same_for_every_kind_of_items(user):
    def settings(item):
        config = pixelrec.get_config(f"user={user},item={item},dataset=custom")
        optim = {key: config.optim[key] for key in ("lr", "visual_lr", "weight_decay")}
        return config.width, config.train.to_dict(), optim

    first, *others = map(settings, items_of(user))
    assert all(other == first for other in others)
    assert (first[1]["epochs"] == 0) == (user == "visrank")  # nothing to train


def _millions(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree)) / 1e6


@pytest.mark.parametrize(
    ("item", "blocks", "millions"),
    [
        ("clip_vit_b32", {"block_10", "block_11"}, 14.18),
        ("clip_rn50", {"layer3", "layer4"}, 22.06),
        ("clip_rn50x4", {"layer4"}, 44.3),
        ("clip_rn50x16", {"layer4"}, 83.8),
        ("clip_rn50x64", {"layer4"}, 184.7),
        ("swin_t", {"stage_2", "stage_3", "norm"}, 26.03),
        ("swin_b", {"stage_2", "stage_3", "norm"}, 84.10),
        ("beit_b16", {"block_10", "block_11", "norm"}, 14.20),
    ],
)
def test_what_is_trained_is_what_the_reference_trains(item, blocks, millions):
    """The reference; its sets give the numbers of Table 9."""
    config = pixelrec.get_config(f"user=sasrec,item={item},dataset=pixel200k")
    size = config.item.image_size
    model = build_recommender(config, num_items=2, num_users=2)
    items = Items(
        id=jax.ShapeDtypeStruct((1, 1), jnp.int32),
        image=jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
    )
    init = partial(model.init, jax.random.key(0), method="encode_items")
    trainable, _ = partition(jax.eval_shape(init, items)["params"], trainable_filter(model))
    backbone = trainable["item_encoder"]["backbone"]
    assert set(backbone) == blocks
    assert round(_millions(backbone), len(str(millions).partition(".")[2])) == millions


def test_sasrec_with_two_blocks_of_clip_has_the_papers_parameters(toy_dataset):
    """18.78 M (Table 9)."""
    config = pixelrec.get_config("user=sasrec,item=clip_vit_b32,dataset=pixel200k").unlock()
    config.dataset.path = str(toy_dataset)
    experiment = build_experiment(config, devices=jax.devices()[:1])
    template = jax.eval_shape(lambda: state_template(experiment))
    assert round(_millions(template.trainable), 2) == 18.78
