"""Items as frozen features: what each form makes of them, and training on them end to end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.data.types import Items
from pixelrec_jax.items import build_item_encoder
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from tests.tiny import random_features, random_store, tiny_config

N, D, C = 9, 4, 6
IDS = np.array([0, 3, 1, 8, 3], np.int32)  # padding and a repeat


class Encoded:
    """An item encoder's parameters, larger than they start, and its vectors of some ids."""

    def __init__(self, words: str, **options):
        config = tiny_config(f"{words},dataset=custom")
        config.width = D
        config.item.update(options)
        self.model = build_recommender(config, num_items=N, num_users=2)
        self.ids = np.append(IDS, np.int32(N)) if task_of(config).uses_mask_item else IDS
        self.items = item_batch(self.ids[None], random_store(config.item, N))
        self.feature = self.items.feature[0]
        init = partial(self.model.init, method="encode_items")
        started = jax.eval_shape(init, jax.random.key(0), self.items).get("params", {})
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(x.dtype), started.get("item_encoder", {})
        )
        self.vector = self.encode(self.params, self.items)

    def encode(self, params: dict, items: Items) -> jax.Array:
        variables = {"params": {"item_encoder": params}}
        return self.model.apply(variables, items, method="encode_items")[0]

    def rows_of_ids(self) -> np.ndarray:
        return self.params["ids"]["table"][self.ids]


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def dense(params, x):
    x, params = jax.device_get((x, params))
    return x @ params["kernel"] + params.get("bias", 0)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("item", ["features", "id+features"])
@pytest.mark.parametrize("user", ["sasrec", "bert4rec"])
def test_dense_features_are_projected_together_with_ids_and_then_averaged(user, item):
    this = Encoded(f"user={user},item={item}", dnn_layers=(5,))
    x = this.feature.reshape(len(this.ids), 4, C)
    if item == "id+features":
        ids = np.repeat(this.rows_of_ids()[:, None], 4, axis=1)
        x = np.concatenate([x, ids], axis=-1)
    hidden = relu(dense(this.params["dense_0"], x))
    expected = relu(dense(this.params["head"], hidden)).mean(axis=1)
    if user == "bert4rec":
        expected[-1] = this.params["mask"]
    else:
        assert "mask" not in this.params
    assert_close(this.vector, expected)


@pytest.mark.parametrize(("item", "width"), [("features", D), ("id+features", D // 2)])
def test_biased_features_have_an_id_a_look_and_a_bias(item, width):
    this = Encoded(f"user=vbpr,item={item}")
    x = this.feature.reshape(len(this.ids), 4, C).mean(axis=1)
    assert this.params["visual"]["kernel"].shape == (C, width)
    assert "bias" not in this.params["visual"]
    expected = [dense(this.params[name], x) for name in ("visual", "bias")]
    if item == "id+features":
        expected = [this.rows_of_ids(), *expected]
    assert_close(this.vector, np.concatenate(expected, axis=1))


def test_components_are_an_id_and_every_location():
    this = Encoded("user=acf,item=id+features")
    locations = relu(dense(this.params["location"], this.feature)).reshape(len(IDS), 4 * D)
    assert_close(this.vector, np.concatenate([this.rows_of_ids(), locations], axis=1))


def test_raw_features_have_unit_length_or_none():
    this = Encoded("user=visrank,item=features")
    assert this.params == {}
    x = this.feature.reshape(len(this.ids), 4, C).mean(axis=1)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    assert_close(this.vector, x / np.where(length > 0, length, 1))
    without = this.items.replace(feature=np.zeros_like(this.items.feature))
    assert not this.encode({}, without).any()


@pytest.mark.parametrize("user", ["sasrec", "bert4rec"])
def test_semantic_ids_are_means_of_a_row_for_each_place_and_code(user):
    this = Encoded(f"user={user},item=semantic_ids", codebook_size=7)
    table = this.params["codebook"].reshape(3, 8, D)
    expected = np.mean([table[n, this.feature[:, n]] for n in range(3)], axis=0)
    if user == "bert4rec":
        expected[-1] = this.params["mask"]
    assert_close(this.vector, expected)


def test_padding_does_not_train_semantic_ids():
    this = Encoded("user=sasrec,item=semantic_ids", codebook_size=7)

    def gradient(item):
        items = Items(id=np.full((1, 1), item), feature=this.items.feature[:, 1:2])
        return jax.grad(lambda params: jnp.sum(this.encode(params, items)))(this.params)["codebook"]

    assert gradient(3).any()
    assert not gradient(0).any()


@pytest.mark.parametrize(
    ("words", "head", "message"),
    [
        (
            "user=sasrec,item=features",
            "denes",
            "item.feature_head='denes'; expected dense, biased, components or raw",
        ),
        (
            "user=acf,item=features",
            "components",
            "item.feature_head='components' needs ids, .* use item=id.features",
        ),
    ],
)
def test_unknown_and_unfit_heads_are_refused(words, head, message):
    config = tiny_config(f"{words},dataset=custom")
    config.item.feature_head = head
    with pytest.raises(UserError, match=message):
        build_item_encoder(config.item, num_items=N, mask_item=None, width=D)


@pytest.mark.parametrize(
    ("user", "item"),
    [("sasrec", "id+features"), ("bert4rec", "features"), ("vbpr", "features")],
)
def test_models_on_features_train_end_to_end(toy_dataset, tmp_path, user, item):
    config = tiny_config(f"user={user},item={item},dataset=toy", toy_dataset)
    if "layers" in config.user:
        config.user.layers = 1
    config.train.epochs = 2
    config.item.path = str(tmp_path / "features.npy")
    items = load_interactions(toy_dataset).num_items
    np.save(config.item.path, random_features(items, C).astype(np.float16))
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert 0 < result["test"]["model"]["all"]["recall@10"]["value"] <= 1
    np.save(config.item.path, 2 * random_features(items, C))
    with pytest.raises(UserError, match="was trained on other data"):
        train.evaluate(config, tmp_path / "run")
