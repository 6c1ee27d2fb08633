"""The pixel encoder: padding, poolings, projection heads, normalisation, wrong settings."""

import jax
import numpy as np
import pytest

from pixelrec_jax.data.types import Items
from pixelrec_jax.items.pixel import NORMALISATIONS
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.system.errors import UserError
from tests.tiny import tiny_config


def _encode(config, items, variables=None):
    model = build_recommender(config, num_items=5, num_users=5)
    if variables is None:
        variables = model.init(jax.random.key(0), items, method="encode_items")
    return model.apply(variables, items, method="encode_items"), variables


def _items():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 16, 3)).astype(np.uint8)
    return Items(id=np.array([[0, 1]], np.int32), image=pixels)


def test_the_padding_image_is_grey_after_normalisation():
    """Slot 0 is encoded as zeros after normalisation, whatever its pixels say."""
    config, items = tiny_config("user=sasrec,item=vit_toy,dataset=toy"), _items()
    vectors, variables = _encode(config, items)
    changed, _ = _encode(config, items.replace(image=255 - items.image), variables)
    np.testing.assert_array_equal(vectors[0, 0], changed[0, 0])
    assert not np.allclose(vectors[0, 1], changed[0, 1])


@pytest.mark.numerical
def test_the_head_projects_tokens_and_averages_them_or_projects_a_pooled_vector():
    items = _items()
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy")
    vectors, variables = _encode(config, items)
    head = jax.device_get(variables["params"]["item_encoder"]["head"])
    backbone = build_recommender(config, num_items=5, num_users=5).item_encoder.backbone
    image = (items.image[0, 1:] / np.float32(255) - 0.5) / 0.5
    tokens = backbone.apply({"params": variables["params"]["item_encoder"]["backbone"]}, image)[0]

    def project(x):
        return np.maximum(np.asarray(x) @ head["kernel"] + head["bias"], 0)

    np.testing.assert_allclose(vectors[0, 1], project(tokens).mean(axis=0), rtol=1e-5, atol=1e-6)
    for pool, pooled in {"cls": tokens[0], "mean": tokens[1:].mean(axis=0)}.items():
        config.item.pool = pool
        vectors, _ = _encode(config, items, variables)
        np.testing.assert_allclose(vectors[0, 1], project(pooled), rtol=1e-5, atol=1e-6)


def test_more_dense_layers_lie_between_backbone_and_projection():
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy")
    config.item.pool, config.item.dnn_layers = "mean", (24, 12)
    vectors, variables = _encode(config, _items())
    shapes = {
        name: layer["kernel"].shape
        for name, layer in variables["params"]["item_encoder"].items()
        if name != "backbone"
    }
    assert shapes == {"dense_0": (64, 24), "dense_1": (24, 12), "head": (12, 16)}
    assert vectors.shape == (1, 2, 16)


@pytest.mark.parametrize("name", sorted(VISION_ENCODERS.keys() - {"vit_toy"}))
def test_every_encoder_begins_at_its_first_trained_block(name):
    """With the trained blocks of its config it can be cached; vit_toy trains all of its own."""
    config = tiny_config(f"user=sasrec,item={name},dataset=toy")
    config.item.update({"image_size": 224, "source": "cached"})
    encoder = build_recommender(config, num_items=5, num_users=5).item_encoder
    names = encoder.backbone.step_names
    assert names[encoder.boundary] in encoder.trainable_blocks
    assert not set(names[: encoder.boundary]) & set(encoder.trainable_blocks)
    config.item.trainable = "none"
    encoder = build_recommender(config, num_items=5, num_users=5).item_encoder
    assert encoder.boundary == len(names)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisation(name):
    config, items = tiny_config("user=sasrec,item=vit_toy,dataset=toy"), _items()
    _, variables = _encode(config, items)
    config.item.normalisation = name
    vectors, _ = _encode(config, items, variables)
    mean, std = map(np.asarray, NORMALISATIONS[name])
    # The pixels that give the same values under the reference's normalisation.
    same = ((items.image / 255 - mean) / std * 0.5 + 0.5) * 255
    config.item.normalisation = "half"
    expected, _ = _encode(config, items.replace(image=same.astype(np.float32)), variables)
    np.testing.assert_allclose(vectors[0, 1], expected[0, 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", 100, r"item.image_size=100 .* 32 pixels.* try 96"),
        ("pool", "max", "item.pool='max'; expected tokens, cls or mean"),
        (
            "normalisation",
            "unit",
            "item.normalisation='unit'; expected checkpoint, half",
        ),
        ("trainable", "last:14", "item.trainable='last:14': the encoder has 13 blocks"),
        ("trainable", "block_99", "unknown block 'block_99'"),
        ("trainable", "block_10,stem,blok_11", "unknown block 'blok_11'; did you mean 'block_11'"),
        ("trainable", "()", "give all, none, last:2 or names"),
        ("strength", 0.5, "the config has no key 'item.strength'; did you mean"),
        ("name", "clip_vit_b33", "unknown item encoder 'clip_vit_b33'.*clip_vit_b32"),
    ],
)
def test_wrong_settings_are_one_line(key, value, message):
    config = tiny_config("user=sasrec,item=clip_vit_b32,dataset=toy")
    config.item.image_size = 224
    with config.unlocked():
        config.item[key] = value
    with pytest.raises(UserError, match=message):
        build_recommender(config, num_items=5, num_users=5)


def test_a_config_of_an_earlier_version_is_one_line():
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy").unlock()
    del config.item.pool
    with pytest.raises(UserError, match=r"the config lacks item.pool; .* new workdir"):
        build_recommender(config, num_items=5, num_users=5)


def _with_trainable(option):
    """A config with a value of another type, as a config file can have it."""
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy").unlock()
    del config.item.trainable
    config.item.trainable = option
    return config


@pytest.mark.parametrize(
    "option", ["block_0,norm", "('block_0', 'norm')", "norm, block_0", ("block_0", "norm")]
)
def test_trainable_blocks_by_name(option):
    config = _with_trainable(option)
    assert build_recommender(config, num_items=5, num_users=5).item_encoder.trainable_blocks == (
        "block_0",
        "norm",
    )


def test_blocks_that_are_not_words_are_one_line():
    message = r"item.trainable=\(1, 2\); expected words, as in \('block_10', 'block_11'\)"
    with pytest.raises(UserError, match=message):
        build_recommender(_with_trainable((1, 2)), num_items=5, num_users=5)
