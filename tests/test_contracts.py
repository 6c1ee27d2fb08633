"""Contracts of every item and user encoder: a new one is tested by being registered."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.types import Batch, History, Items
from pixelrec_jax.items import FEATURES
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.resnet import ResNet
from pixelrec_jax.parallel.tables import COLLECTION
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.users import USER_ENCODERS
from tests.steps import draw_variables
from tests.tiny import (
    ARCHITECTURES,
    TINY,
    items_of,
    num_targets,
    pair_scores,
    random_store,
    tiny_config,
    use_tiny_encoders,
)

CAUSAL = ("sasrec", "gru4rec", "nextitnet")
NUM_ITEMS = 30


@pytest.fixture
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)


def test_every_architecture_has_a_tiny_sibling():
    def options(name):
        backbone = VISION_ENCODERS[name].backbone
        kind = backbone.args[0] if backbone.func is ResNet else backbone.keywords.get("clip")
        return backbone.func, kind

    assert {options(name) for name in VISION_ENCODERS} == {options(name) for name in TINY}


class Case:
    """A small model of one user and one item encoder with a batch for it."""

    def __init__(self, user: str, item: str):
        self.config = tiny_config(f"user={user},item={item},dataset=toy")
        self.model = build_recommender(self.config, num_items=NUM_ITEMS, num_users=5)
        rng = np.random.default_rng(0)
        self.store = random_store(self.config.item, NUM_ITEMS)
        ids = np.concatenate([[0], rng.permutation(np.arange(1, NUM_ITEMS))])[None].astype(np.int32)
        history = rng.integers(1, NUM_ITEMS, (1, 4, 10)).astype(np.int32)
        history[0, 1, :7] = 0  # left-padded
        self.targets = num_targets(self.config)
        shape = (1, 4, self.targets)
        self.batch = Batch(
            items=self.items(ids),
            user=np.arange(1, 5, dtype=np.int32)[None],
            history=history,
            positive=rng.integers(1, NUM_ITEMS, shape).astype(np.int32),
            negative=rng.integers(1, NUM_ITEMS, (*shape, 2)).astype(np.int32),
            weight=(history[..., -self.targets :] > 0).astype(np.float32),
        )
        init = partial(self.model.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), self.batch)
        self.variables = {"params": {}, **draw_variables(shapes)}
        self.scores = jax.jit(partial(pair_scores, self.model))
        self.encode_items = jax.jit(partial(self.model.apply, method="encode_items"))
        self.entries = self.encode_items(self.variables, self.batch.items).shape[-1]  # E

    def items(self, ids: np.ndarray) -> Items:
        return item_batch(ids, self.store)


@cache
def case(user: str, item: str) -> Case:
    return Case(user, item)


# Every user encoder with one item encoder, every item encoder with one user encoder.
each_model = pytest.mark.parametrize(
    ("user", "item"),
    [(user, items_of(user)[0]) for user in USER_ENCODERS]
    + [("vbpr", "id+features")]
    + [("sasrec", item) for item in FEATURES]
    + [("mf", item) for item in ARCHITECTURES],
)


@pytest.mark.usefixtures("_tiny_encoders")
@each_model
def test_scores_are_finite_and_of_the_right_shape(user, item):
    this = case(user, item)
    positive, negative = this.scores(this.variables, this.batch)
    assert positive.shape == (1, 4, this.targets)
    assert negative.shape == (1, 4, this.targets, 2)
    assert positive.dtype == negative.dtype == jnp.float32
    assert np.isfinite(positive).all()
    assert np.isfinite(negative).all()


@pytest.mark.usefixtures("_tiny_encoders")
@each_model
def test_every_parameter_gets_a_gradient(user, item):
    this = case(user, item)

    @jax.jit
    def gradient(params):
        def loss(params):
            variables = {**this.variables, "params": params}
            positive, negative = this.scores(variables, this.batch)
            weight = this.batch.weight
            return jnp.sum((jax.nn.softplus(negative - positive[..., None])) * weight[..., None])

        return jax.grad(loss)(params)

    gradients = flatten_dict(gradient(this.variables["params"]))
    assert gradients or user == "visrank"  # which has nothing to train
    for path, leaf in gradients.items():
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("user", CAUSAL)
def test_a_state_does_not_depend_on_later_items(user):
    this = case(user, "id")
    rng = np.random.default_rng(1)
    vector = rng.normal(size=(1, 10, 16)).astype(np.float32)

    def state(vector):
        history = History(
            item_embeddings=vector,
            item=np.arange(1, 11)[None],
            user=np.ones(1, np.int32),
        )
        return this.model.apply(this.variables, history, method="encode_users")[0]

    # [state position, feature, input position, feature] -> which inputs a state depends on
    jacobian = np.abs(jax.jit(jax.jacobian(state))(vector)[:, :, 0]).sum(axis=(1, 3))
    assert (jacobian[np.triu_indices(10, 1)] == 0).all()
    assert (jacobian[np.tril_indices(10)] > 0).all()


@pytest.mark.parametrize("user", USER_ENCODERS)
def test_padding_is_invisible(user):
    this = case(user, items_of(user)[0])
    rng = np.random.default_rng(1)
    vector = rng.normal(size=(1, 10, this.entries)).astype(np.float32)
    mask = np.arange(10)[None] >= 6

    def state(vector):
        item = np.where(mask, np.arange(10), 0)
        history = History(item_embeddings=vector, item=item, user=np.ones(1, np.int32))
        return this.model.apply(this.variables, history, method="encode_users")[0, -4:]

    other = np.where(mask[..., None], vector, 1e3).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(state)(vector), jax.jit(state)(other))


@pytest.mark.numerical
@pytest.mark.parametrize("user", USER_ENCODERS)
def test_a_padded_history_is_like_a_short_one(user):
    this = case(user, items_of(user)[0])
    encoder = dict(this.variables["params"].get("user_encoder", {}))
    if "position" in encoder:  # those of the last slots
        encoder["position"] = encoder["position"][6:]
    cut = {"params": {**this.variables["params"], "user_encoder": encoder}}
    rng = np.random.default_rng(1)
    vector = rng.normal(size=(1, 10, this.entries)).astype(np.float32)
    items = rng.normal(size=(5, this.entries)).astype(np.float32)
    padded = History(
        item_embeddings=vector,
        item=np.where(np.arange(10) >= 6, np.arange(10), 0)[None],
        user=np.ones(1, np.int32),
    )
    short = jax.tree.map(lambda x: x[:, 6:] if x.ndim > 1 else x, padded)

    def scores(variables, history):
        state = this.model.apply(variables, history, method="encode_users")[:, -1]
        return this.model.apply({}, state, items, method="score")

    expected = scores(cut, short)
    np.testing.assert_allclose(scores(this.variables, padded), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_tiny_encoders")
@pytest.mark.parametrize(
    ("user", "item"),
    [
        (user, item)
        for user, encoder in USER_ENCODERS.items()
        for item in ("id", "id+features")
        if item in items_of(user) and not encoder.uses_graph
    ],
)
def test_rows_that_a_model_declares_are_those_it_reads(user, item):
    this = case(user, item)
    lookups = this.model.embedding_lookups(items=this.batch.items, user=this.batch.user)
    params = flatten_dict(this.variables["params"])
    assert set(lookups) == {path for path in params if path[-1] == "table"}
    rows = {path: params[path][lookup.ids] for path, lookup in lookups.items()}

    def result(rows):
        variables = {**this.variables, COLLECTION: unflatten_dict(rows)}
        return this.model.apply(variables, this.batch, train=False)

    expected = this.model.apply(this.variables, this.batch, train=False)
    jax.tree.map(np.testing.assert_array_equal, result(rows), expected)
    for path in rows:
        others = result({**rows, path: params[path][lookups[path].ids - 1]})
        same = (np.array_equal(*pair) for pair in zip(others, expected, strict=True))
        assert not all(same), path


@pytest.mark.numerical
@pytest.mark.usefixtures("_tiny_encoders")
@each_model
def test_training_scores_are_catalogue_scores(user, item):
    this = case(user, item)
    positive, _ = this.scores(this.variables, this.batch)
    # The way of evaluation: the catalogue in order of id, histories looked up in it.
    catalog = this.encode_items(this.variables, this.items(np.arange(NUM_ITEMS)[None]))[0]
    history = this.batch.items.id[0][this.batch.history[0]]
    target = this.batch.items.id[0][this.batch.positive[0]]
    queries = this.model.apply(
        this.variables,
        History(item_embeddings=catalog[history], item=history, user=this.batch.user[0]),
        method="encode_users",
    )
    last = this.model.apply({}, queries[:, -1], catalog[target[:, -1:]], method="score")[:, 0]
    np.testing.assert_allclose(positive[0, :, -1], last, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_tiny_encoders")
@pytest.mark.parametrize("item", ARCHITECTURES)
def test_bf16_compute_keeps_float32_parameters_and_vectors(item):
    config = tiny_config(f"user=mf,item={item},dataset=toy")
    config.item.dtype = "bfloat16"
    model = build_recommender(config, num_items=NUM_ITEMS, num_users=5)
    items = Items(id=np.ones((1, 2), np.int32), image=np.zeros((1, 2, 16, 16, 3), np.uint8))

    def encode(items):
        variables = model.init(jax.random.key(0), items, method="encode_items")
        return model.apply(variables, items, method="encode_items"), variables

    vectors, variables = jax.eval_shape(encode, items)
    assert vectors.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_config_chooses_recomputation():
    """That it changes no gradient is shown in `test_parity`."""

    def program(remat: bool) -> str:
        config = tiny_config("user=mf,item=vit_toy,dataset=toy")
        config.item.remat = remat
        model = build_recommender(config, num_items=NUM_ITEMS, num_users=5)
        items = Items(id=np.ones((1, 2), np.int32), image=np.zeros((1, 2, 16, 16, 3), np.uint8))
        init = partial(model.init, method="encode_items")
        variables = jax.eval_shape(init, jax.random.key(0), items)
        encode = partial(model.apply, train=True, method="encode_items")
        return str(jax.make_jaxpr(encode)(variables, items))

    assert ["remat" in program(choice) for choice in (False, True)] == [False, True]
