"""The reference's own numbers: loss, gradients, one AdamW step, scores, top 10, metrics.

tests/golden/trim.py says where the files come from. Tolerance: 1e-5 of a tensor's largest
magnitude; the top 10 is equal.
"""

import ast
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pixelrec_jax import freeze
from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.slots import deduplicate
from pixelrec_jax.data.split import training_windows
from pixelrec_jax.data.tasks import Rows
from pixelrec_jax.data.types import Batch
from pixelrec_jax.evaluate import Ranking
from pixelrec_jax.experiment import Experiment, build_experiment
from pixelrec_jax.items.vision.vit import CLIP_HUGGINGFACE
from pixelrec_jax.losses import bpr, only_first_row
from pixelrec_jax.sharding import BATCH, to_global
from pixelrec_jax.state import init_state, state_template, trainable_filter
from pixelrec_jax.train import make_train_step
from pixelrec_jax.weights.port import LINEAR, Port, Rule, Transform, linear, norm, read_weights
from tests.tiny import ArrayStore, interactions_of, tiny_config, use_tiny_encoders

GOLDEN = Path(__file__).parent / "golden"

_LAYER = "trm_encoder.layer.{n}"


SASREC = (
    Rule("position_embedding.weight", "user_encoder/position"),
    *norm("LayerNorm", "user_encoder/norm"),
    *(
        rule
        for name, target in {
            "query": "query",
            "key": "key",
            "value": "value",
            "dense": "out",
        }.items()
        for rule in linear(
            f"{_LAYER}.multi_head_attention.{name}", f"user_encoder/layer_{{n}}/{target}"
        )
    ),
    *norm(f"{_LAYER}.multi_head_attention.LayerNorm", "user_encoder/layer_{n}/attention_norm"),
    *linear(f"{_LAYER}.feed_forward.dense_1", "user_encoder/layer_{n}/feed_in"),
    *linear(f"{_LAYER}.feed_forward.dense_2", "user_encoder/layer_{n}/feed_out"),
    *norm(f"{_LAYER}.feed_forward.LayerNorm", "user_encoder/layer_{n}/feed_norm"),
)
_ATTENTION = f"{_LAYER}.multi_head_attention"
LIGHTSANS = (
    *SASREC,
    Rule(f"{_ATTENTION}.attpooling_key.theta", "user_encoder/layer_{n}/key_interests"),
    Rule(f"{_ATTENTION}.attpooling_value.theta", "user_encoder/layer_{n}/value_interests"),
    *linear(f"{_ATTENTION}.pos_q_linear", "user_encoder/layer_{n}/position_query"),
    *linear(f"{_ATTENTION}.pos_k_linear", "user_encoder/layer_{n}/position_key"),
    *norm(f"{_ATTENTION}.pos_ln", "user_encoder/layer_{n}/position_norm"),
)
SRGNN = (
    Rule("gnn.w_ih", "user_encoder/message/kernel", LINEAR),
    Rule("gnn.b_ih", "user_encoder/message/bias"),
    Rule("gnn.w_hh", "user_encoder/state/kernel", LINEAR),
    Rule("gnn.b_hh", "user_encoder/state/bias"),
    *linear("gnn.linear_edge_in", "user_encoder/incoming"),
    Rule("gnn.b_iah", "user_encoder/incoming_bias"),
    *linear("gnn.linear_edge_out", "user_encoder/outgoing"),
    Rule("gnn.b_oah", "user_encoder/outgoing_bias"),
    *linear("linear_one", "user_encoder/last"),
    *linear("linear_two", "user_encoder/each"),
    Rule("linear_three.weight", "user_encoder/attention/kernel", LINEAR),
    *linear("linear_transform", "user_encoder/out"),
)
_TOWER = "visual_encoder.item_encoder.vision_model."
ITEM = (  # of models on ids, and of those on images
    Rule("item_embedding.weight", "item_encoder/table"),
    Rule("embedding.weight", "item_encoder/table"),
    *(
        Rule(_TOWER + rule.source, "item_encoder/trunk/" + rule.target, rule.transform)
        for rule in CLIP_HUGGINGFACE.rules
    ),
    *linear("visual_encoder.rec_fc.0", "item_encoder/head"),
)
MF = (Rule("user_embedding.weight", "user_encoder/table"),)
GRU = (
    Rule("gru_layers.weight_ih_l0", "user_encoder/input/kernel", LINEAR),
    Rule("gru_layers.weight_hh_l0", "user_encoder/recurrent", LINEAR),
    *linear("dense", "user_encoder/out"),
)
# [out, in, 1, k] <-> [k, in, out]
_CONV = Transform(
    lambda x, shape: x[:, :, 0].transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)[:, :, None]
)
NEXTITNET = (
    Rule("residual_blocks.{n}.conv{m}.weight", "user_encoder/block_{n}/conv_{m}/kernel", _CONV),
    Rule("residual_blocks.{n}.conv{m}.bias", "user_encoder/block_{n}/conv_{m}/bias"),
    *norm("residual_blocks.{n}.ln{m}", "user_encoder/block_{n}/norm_{m}"),
)
# The trunk's softmax is over keys, that of the user encoder over queries.
QUERY_SOFTMAX_NOISE = r"item_encoder/.*/key/bias|user_encoder/.*query/bias"
IGNORED = (r".*\.position_ids", r".*\.post_layernorm\..*", r"gnn\.linear_edge_f\..*")


@dataclass(frozen=True)
class Case:
    """How a golden file maps to a config of ours.

    Attributes:
      user: the recommender.
      rules: names of the reference's and our parameters, those of the item encoder aside.
      layout: of the batch, a key of `LAYOUTS`.
      options: of the user encoder.
      ignored: tensors that the reference keeps and does not use, see `Port`.
      noise: regular expression of parameters whose gradient is zero but for rounding. A key's bias
        adds the same to all logits of a query, which softmax ignores.
      rounding: how far the file's gradients are from the same computed in float64, relative to the
        largest magnitude, for parameters where that is nearly the tolerance or above it.
    """

    user: str
    rules: tuple[Rule, ...]
    layout: str
    options: dict[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    noise: str = r".*/key/bias"
    rounding: dict[str, float] = field(default_factory=dict)

    def is_noise(self, path: tuple[str, ...]) -> bool:
        """Whether the gradient of a parameter is zero but for rounding."""
        return re.fullmatch(self.noise, "/".join(path)) is not None


# Every model, and its pixel twin with the prefix MO.
CASES = {
    "SASRec": Case("sasrec", SASREC, "next_item"),
    "MF": Case("mf", MF, "pairs"),
    "FM": Case("fm", (), "one_tower"),
    "DSSM": Case("dssm", (), "two_tower", ignored=("user_embedding.weight",)),
    "GRU4Rec": Case("gru4rec", GRU, "next_item", {"hidden_multiple": 1}),
    "NextItNet": Case("nextitnet", NEXTITNET, "next_item"),
    "SRGNN": Case("srgnn", SRGNN, "graph"),
    "BERT4Rec": Case("bert4rec", SASREC, "cloze"),
    "LightSANs": Case("lightsans", LIGHTSANS, "two_tower", noise=QUERY_SOFTMAX_NOISE),
}
CASES |= {f"MO{name}": case for name, case in CASES.items()}
# The reference's score of a factorisation machine is a difference of squared sums, whose rounding
# comes back in its gradients.
CASES["MOFM"] = replace(
    CASES["MOFM"],
    rounding={
        "item_encoder/trunk/block_1/norm_1/scale": 9.2e-6,
        "item_encoder/trunk/block_2/value/kernel": 9.4e-6,
    },
)


def _rows(history, positive, negative, user=None, weight=None) -> Rows:
    """Rows of item ids; one target each unless there are weights."""
    one_target = positive.ndim == 1
    positive = positive[:, None] if one_target else positive
    return Rows(
        user=np.ones(len(history), np.int32) if user is None else user.astype(np.int32),
        history=history.astype(np.int32),
        positive=positive.astype(np.int32),
        negative=negative.reshape(*positive.shape, 1).astype(np.int32),
        weight=np.ones(positive.shape, np.float32) if weight is None else weight,
    )


def _next_item(file) -> Rows:
    ids = file["batch.0"]
    if ids.ndim == 2:  # images of positives and negatives are interleaved
        ids = ids.reshape(len(ids), -1, 2).transpose(0, 2, 1)
    weight = file["batch.1"].astype(np.float32)
    return _rows(ids[:, 0, :-1], ids[:, 0, 1:], ids[:, 1, 1:], weight=weight)


def _pairs(file) -> Rows:
    positive, negative = file["batch.1"].T
    history = np.zeros((len(positive), 10))
    return _rows(history, positive, negative, user=file["batch.0"])


def _ids(file) -> np.ndarray:
    """A batch of ids, or of places in a list of images."""
    return file["batch"] if "batch" in file else file["batch.1"][file["batch.0"]]


def _one_tower(file) -> Rows:
    ids = _ids(file)
    return _rows(ids[:, 0, :-1], ids[:, 0, -1], ids[:, 1, -1])


def _two_tower(file) -> Rows:
    ids = _ids(file)
    return _rows(ids[:, :-2], ids[:, -2], ids[:, -1])


def _cloze(file) -> Rows:
    if file["batch.0"].ndim == 3:
        history, positive, negative = file["batch.0"].transpose(1, 0, 2)
        weight = file["batch.1"]
    else:  # images of masked, original and negative items are interleaved
        history, weight = file["batch.0"], file["batch.2"]
        _, positive, negative = file["batch.1"].reshape(len(history), -1, 3).transpose(2, 0, 1)
    positive, negative = positive * weight, negative * weight
    return _rows(history, positive, negative, weight=weight.astype(np.float32))


def _graph(file) -> Rows:
    """Nodes are the distinct items of a sequence, which is padded on the right."""
    alias = file["batch.0"]
    if "batch.4" in file:
        nodes, (positive, negative) = file["batch.2"], file["batch.4"].T
    else:
        images = file["batch.3"].reshape(len(alias), -1)
        nodes, positive, negative = images[:, :-2], images[:, -2], images[:, -1]
    items = np.take_along_axis(nodes, alias, axis=1)
    order = np.argsort(items > 0, axis=1, kind="stable")  # padding first
    return _rows(np.take_along_axis(items, order, axis=1), positive, negative)


LAYOUTS = {
    "next_item": _next_item,
    "pairs": _pairs,
    "one_tower": _one_tower,
    "two_tower": _two_tower,
    "cloze": _cloze,
    "graph": _graph,
}


def assert_close(actual, expected, name="", rounding=0.0):
    expected = np.asarray(expected)
    tolerance = (1e-5 + rounding) * np.abs(expected).max()
    difference = np.abs(np.asarray(actual) - expected).max()
    assert difference <= tolerance, f"{name}: off by {difference}, allowed {tolerance}"


def assert_trees_close(actual: dict, expected: dict, case: Case, *, bound_of_noise: float):
    """All tensors are close; those without a gradient are compared with a bound instead.

    What PyTorch or XLA compute for a gradient that is zero is rounding noise, which Adam turns into
    a step of up to one learning rate in a random direction.
    """
    actual, expected = flatten_dict(actual), flatten_dict(expected)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if case.is_noise(path):
            assert np.abs(actual[path]).max() <= bound_of_noise
            assert np.abs(value).max() <= bound_of_noise
        else:
            name = "/".join(path)
            assert_close(actual[path], value, name, case.rounding.get(name, 0))


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
        self.experiment = self.on(jax.devices()[:1])
        self.batch = self._batch()
        template = state_template(self.experiment)
        self.trainable_template = template.trainable
        initial, final = self.tensors("param0/"), self.tensors("param1/")
        self.params0 = self.read(initial, template.params)
        self.params1 = self.read({**initial, **final}, template.params)

    def _config(self) -> ConfigDict:
        item = "clip_vit_b32" if self.on_images else "id"
        config = tiny_config(f"user={self.case.user},item={item},preset=parity")
        if config.item.name != "id":
            config.item.image_size = 32
            config.item.trainable = "block_1,block_2"
            config.item.weights = ""
        config.eval.batch_size = 256  # all users
        config.user.update(self.case.options)
        groups = ast.literal_eval(str(self.file["optim"]))
        config.optim.visual_lr = groups[0]["lr"]
        config.optim.visual_weight_decay = float(groups[0]["weight_decay"])
        config.optim.lr = groups[-1]["lr"]
        config.optim.weight_decay = float(groups[-1]["weight_decay"])
        return config

    def on(self, devices) -> Experiment:
        """Our experiment on the reference's sequences and with its numbers of users."""
        length = self.data["data/user_seq_len"]
        sequences = np.split(self.data["data/user_seq_flat"], np.cumsum(length)[:-1])
        by_user = [sequences[n] for n in np.argsort(self.order)]
        interactions = interactions_of(by_user, self.num_items)
        pixels = self.config.item.name != "id"
        store = ArrayStore(np.load(GOLDEN / "images.npy")) if pixels else None
        return build_experiment(
            self.config, devices=devices, interactions=interactions, store=store
        )

    def read(self, tensors: dict[str, np.ndarray], template: dict) -> dict:
        """Tensors by the reference's names as a tree of ours."""
        port = Port("reference", self.case.rules + ITEM, ignored=(*IGNORED, *self.case.ignored))
        return read_weights(tensors, (port,), template, origin="the golden file")

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors of the file below a prefix, by the reference's names."""
        return {k.removeprefix(prefix): v for k, v in self.file.items() if k.startswith(prefix)}

    def _batch(self) -> Batch:
        rows = LAYOUTS[self.case.layout](self.file)
        ids = [x.reshape(1, -1) for x in (rows.history, rows.positive, rows.negative)]
        largest = self.num_items + 1  # the mask
        unique, slots = deduplicate(np.concatenate(ids, axis=1), bucket=1, largest=largest)
        history, positive, negative = np.split(slots, np.cumsum([x.size for x in ids])[:2], axis=1)
        return Batch(
            items=item_batch(unique, self.experiment.store),
            user=rows.user[None],
            history=history.reshape(1, *rows.history.shape),
            positive=positive.reshape(1, *rows.positive.shape),
            negative=negative.reshape(1, *rows.negative.shape),
            weight=rows.weight[None],
        )

    def ranking(self, devices, k: int = 10) -> tuple[Ranking, np.ndarray, np.ndarray]:
        """Our ranking with the parameters after the step; for the users of the reference's first
        validation batch their places in it, and their histories.
        """
        evaluator = self.on(devices).evaluator
        evaluator.k = k
        queries, _ = next(evaluator._queries("valid"))
        return evaluator.rank({"params": self.params1}, "valid"), self.order[:64], queries.history


@pytest.fixture(scope="module")
def golden():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoders(patch)
        yield cache(lambda name: Golden(name, CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_gradients(golden, name):
    case = golden(name)
    model, batch, epsilon = case.experiment.model, case.batch, case.config.loss.epsilon
    batch = only_first_row(batch) if case.config.loss.single_row else batch

    @jax.jit
    def gradient(trainable, frozen):
        def loss(trainable):
            params = freeze.merge(trainable, frozen)
            scores = model.apply({"params": params}, batch, train=False)
            rows = jnp.count_nonzero(batch.user)
            return bpr(*scores, batch.weight, rows, epsilon=epsilon)

        return jax.grad(loss)(trainable)

    actual = gradient(*freeze.partition(case.params0, trainable_filter(case.experiment.model)))
    expected = case.read(case.tensors("grad/"), case.trainable_template)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert_trees_close(actual, expected, case.case, bound_of_noise=1e-6 * largest)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_one_adamw_step(golden, name):
    """The program's own train step, from the reference's parameters."""
    case = golden(name)
    trainable, frozen = freeze.partition(case.params0, trainable_filter(case.experiment.model))
    state = init_state(case.experiment).replace(trainable=trainable, frozen=frozen)
    step = make_train_step(case.experiment)
    batch = to_global(case.batch, case.experiment.mesh, BATCH)
    state, loss = step(state, batch, case.experiment.graph)
    assert_close(loss, case.file["loss0"])
    # They start at zero, or within one step of it.
    starts = [x for path, x in flatten_dict(case.params0).items() if case.case.is_noise(path)]
    bound = max((np.abs(x).max() for x in starts), default=0) + 1.01 * case.config.optim.lr
    params = jax.device_get(state.params)
    assert_trees_close(params, case.params1, case.case, bound_of_noise=bound)
    _, loss = step(state, batch, case.experiment.graph)
    assert_close(loss, case.file["loss1"])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_item_vectors_scores_and_top_10(golden, name, devices):
    case = golden(name)
    evaluator = case.on(jax.devices()[:devices]).evaluator
    catalog = evaluator.encode_catalog({"params": case.params1})
    vectors = np.asarray(catalog).reshape(-1, catalog.shape[-1])[: len(case.file["feat"])]
    assert_close(vectors, case.file["feat"])
    ranking, places, history = case.ranking(jax.devices()[:devices])
    if case.file.get("eval.0", np.empty(0)).ndim == 2:
        length = case.file["eval.0"].shape[1]
        np.testing.assert_array_equal(history[places, :length], case.file["eval.0"])
    np.testing.assert_array_equal(ranking.top_ids[places], case.file["topk"])
    scores = case.file["scores"]
    places = places[: len(scores)]
    top = np.take_along_axis(scores, ranking.top_ids[places], axis=1)
    # Relative to the largest score of all, masked ones aside.
    tolerance = 1e-5 * np.abs(scores[np.isfinite(scores)]).max()
    assert np.abs(ranking.top_scores[places] - top).max() <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_all_scores_with_history_masked(golden, name):
    case = golden(name)
    expected = case.file["scores"]
    ranking, places, _ = case.ranking(jax.devices()[:1], k=case.num_items - 1)
    scores = np.full(expected.shape, -np.inf, np.float32)
    for row, place in zip(scores, places, strict=False):
        row[ranking.top_ids[place]] = ranking.top_scores[place]
    masked = np.isneginf(expected)
    np.testing.assert_array_equal(np.isneginf(scores), masked)
    assert_close(np.where(masked, 0, scores), np.where(masked, 0, expected))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_validation_metrics(golden, name, devices):
    case = golden(name)
    evaluator = case.on(jax.devices()[:devices]).evaluator
    metrics = evaluator.metrics(evaluator.rank({"params": case.params1}, "valid"))["all"]
    for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
        # The reference rounds its metrics to seven decimals.
        assert round(metrics[metric]["value"], 7) == case.file[f"valid/{metric}"]


@pytest.mark.parametrize("name", ["SASRec", "MOSASRec"])
def test_training_windows_are_the_references_chunks(golden, name):
    case = golden(name)
    interactions = case.experiment.interactions
    windows = training_windows(interactions, size=11)
    ours = sorted(
        interactions.items[start : start + length].tolist()
        for start, length in zip(windows.start, windows.length, strict=True)
    )
    length = case.file["data/train_seq_len"]
    chunks = np.split(case.file["data/train_seq_flat"], np.cumsum(length)[:-1])
    assert ours == sorted(chunk.tolist() for chunk in chunks)
