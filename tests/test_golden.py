"""The reference's own numbers: loss, gradients, one AdamW step, scores, top 10, metrics.

tests/golden/trim.py says where the files come from. Tolerance: 1e-5 of a tensor's largest
magnitude; the top 10 is equal.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from pixelrec_jax import freeze
from pixelrec_jax.data.slots import deduplicate
from pixelrec_jax.data.split import training_windows
from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.experiment import Experiment, build_experiment
from pixelrec_jax.items.vision.vit import CLIP_HUGGINGFACE
from pixelrec_jax.losses import bpr
from pixelrec_jax.sharding import BATCH, to_global
from pixelrec_jax.state import init_state, state_template, trainable_filter
from pixelrec_jax.train import make_train_step
from pixelrec_jax.weights.port import Port, Rule, linear, norm, read_weights
from tests.tiny import ArrayImages, interactions_of, tiny_config, use_tiny_encoders

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
ITEM_ID = (Rule("item_embedding.weight", "item_encoder/table"),)
_TOWER = "visual_encoder.item_encoder.vision_model."
ITEM_PIXEL = (
    *(
        Rule(_TOWER + rule.source, "item_encoder/trunk/" + rule.target, rule.transform)
        for rule in CLIP_HUGGINGFACE.rules
    ),
    *linear("visual_encoder.rec_fc.0", "item_encoder/head"),
)
IGNORED = (r".*\.position_ids", r".*\.post_layernorm\..*")


@dataclass(frozen=True)
class Case:
    """How a golden file maps to a config of ours."""

    words: str
    rules: tuple[Rule, ...]
    trainable: str = "all"


CASES = {
    "SASRec": Case("user=sasrec,item=id", SASREC + ITEM_ID),
    "MOSASRec": Case("user=sasrec,item=clip_vit_b32", SASREC + ITEM_PIXEL, "block_1,block_2"),
}


def assert_close(actual, expected, name=""):
    expected = np.asarray(expected)
    tolerance = 1e-5 * np.abs(expected).max()
    difference = np.abs(np.asarray(actual) - expected).max()
    assert difference <= tolerance, f"{name}: off by {difference}, allowed {tolerance}"


def assert_trees_close(actual: dict, expected: dict, *, bound_of_noise: float):
    """All tensors are close; those without a gradient are compared with a bound instead.

    A key's bias adds the same to all logits of a query, which softmax ignores: its gradient is zero
    and what PyTorch or XLA compute for it is rounding noise, which Adam turns into a step of up to
    one learning rate in a random direction.
    """
    actual, expected = flatten_dict(actual), flatten_dict(expected)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if path[-2:] == ("key", "bias"):
            assert np.abs(actual[path]).max() <= bound_of_noise
            assert np.abs(value).max() <= bound_of_noise
        else:
            assert_close(actual[path], value, "/".join(path))


class Golden:
    """One golden file beside the same model of ours, with the reference's parameters."""

    def __init__(self, name: str, case: Case):
        self.file = dict(np.load(GOLDEN / f"{name}.npz"))
        self.case = case
        self.num_items = len(self.file["data/id2token_item"])
        self.config = self._config()
        self.experiment = self.on(jax.devices()[:1])
        self.batch = self._batch()
        template = state_template(self.experiment)
        self.trainable_template = template.trainable
        initial, final = self.tensors("param0/"), self.tensors("param1/")
        self.params0 = self.read(initial, template.params)
        self.params1 = self.read({**initial, **final}, template.params)

    def _config(self) -> ConfigDict:
        config = tiny_config(self.case.words)
        if config.item.name != "id":
            config.item.image_size = 32
            config.item.trainable = self.case.trainable
        config.item.weights = ""
        config.loss.epsilon = 1e-8
        groups = ast.literal_eval(str(self.file["optim"]))
        config.optim.item_lr = groups[0]["lr"]
        config.optim.item_weight_decay = float(groups[0]["weight_decay"])
        config.optim.lr = groups[-1]["lr"]
        config.optim.weight_decay = float(groups[-1]["weight_decay"])
        return config

    def on(self, devices) -> Experiment:
        """Our experiment on the reference's sequences, in the reference's order of users."""
        length = self.file["data/user_seq_len"]
        sequences = np.split(self.file["data/user_seq_flat"], np.cumsum(length)[:-1])
        interactions = interactions_of(sequences, self.num_items)
        pixels = self.config.item.name != "id"
        images = ArrayImages(np.load(GOLDEN / "images.npy")) if pixels else None
        return build_experiment(
            self.config, devices=devices, interactions=interactions, images=images
        )

    def read(self, tensors: dict[str, np.ndarray], template: dict) -> dict:
        """Tensors by the reference's names as a tree of ours."""
        port = Port("reference", self.case.rules, ignored=IGNORED)
        return read_weights(tensors, (port,), template, origin="the golden file")

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors of the file below a prefix, by the reference's names."""
        return {k.removeprefix(prefix): v for k, v in self.file.items() if k.startswith(prefix)}

    def _batch(self) -> Batch:
        images = self.experiment.images
        ids = self.file["batch.0"].astype(np.int32)
        if images:  # positives and negatives are interleaved
            ids = ids.reshape(len(ids), -1, 2).transpose(0, 2, 1)
        positive, negative = ids[:, 0], ids[:, 1]
        used = np.concatenate([positive[:, :-1], positive[:, 1:], negative[:, 1:]], axis=1)
        unique, slots = deduplicate(used.reshape(1, -1), bucket=1, largest=self.num_items)
        slots = slots.reshape(1, len(ids), 3, -1)
        return Batch(
            items=Items(id=unique, image=images.load(unique) if images else None),
            user=np.ones((1, len(ids)), np.int32),
            history=slots[:, :, 0],
            positive=slots[:, :, 1],
            negative=slots[:, :, 2, :, None],
            weight=self.file["batch.1"][None].astype(np.float32),
        )


@pytest.fixture(scope="module")
def golden():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoders(patch)
        yield cache(lambda name: Golden(name, CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_gradients(golden, name):
    case = golden(name)
    model, batch, epsilon = case.experiment.model, case.batch, case.config.loss.epsilon

    @jax.jit
    def gradient(trainable, frozen):
        def loss(trainable):
            params = freeze.merge(trainable, frozen)
            scores = model.apply({"params": params}, batch, train=False)
            return bpr(*scores, batch.weight, batch.user.size, epsilon=epsilon)

        return jax.grad(loss)(trainable)

    actual = gradient(*freeze.partition(case.params0, trainable_filter(case.experiment.model)))
    expected = case.read(case.tensors("grad/"), case.trainable_template)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert_trees_close(actual, expected, bound_of_noise=1e-6 * largest)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_one_adamw_step(golden, name):
    """The program's own train step, from the reference's parameters."""
    case = golden(name)
    trainable, frozen = freeze.partition(case.params0, trainable_filter(case.experiment.model))
    state = init_state(case.experiment).replace(trainable=trainable, frozen=frozen)
    step = make_train_step(case.experiment)
    batch = to_global(case.batch, case.experiment.mesh, BATCH)
    state, loss = step(state, batch)
    assert_close(loss, case.file["loss0"])
    # Key biases start at zero, or within one step of it.
    starts = [x for path, x in flatten_dict(case.params0).items() if path[-2:] == ("key", "bias")]
    bound = max(np.abs(x).max() for x in starts) + 1.01 * case.config.optim.lr
    assert_trees_close(jax.device_get(state.params), case.params1, bound_of_noise=bound)
    _, loss = step(state, batch)
    assert_close(loss, case.file["loss1"])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_item_vectors_scores_and_top_10(golden, name, devices):
    case = golden(name)
    evaluator = case.on(jax.devices()[:devices]).evaluator
    catalog = evaluator.encode_catalog({"params": case.params1})
    vectors = np.asarray(catalog).reshape(-1, catalog.shape[-1])[: case.num_items]
    assert_close(vectors, case.file["feat"])
    history = case.file["eval.0"]
    users = case.file["data/user_ids"][: len(history)]
    ranking = evaluator.rank({"params": case.params1}, "valid")
    queries = next(evaluator._queries("valid"))[0]
    np.testing.assert_array_equal(queries.history[: len(history)], history)
    assert len(users) == len(history)
    np.testing.assert_array_equal(ranking.top_ids[: len(history)], case.file["topk"])
    scores = case.file["scores"]
    top = np.take_along_axis(scores, ranking.top_ids[: len(scores)], axis=1)
    # Relative to the largest score of all, masked ones aside.
    tolerance = 1e-5 * np.abs(scores[np.isfinite(scores)]).max()
    assert np.abs(ranking.top_scores[: len(scores)] - top).max() <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_all_scores_with_history_masked(golden, name):
    case = golden(name)
    expected = case.file["scores"]
    evaluator = case.on(jax.devices()[:1]).evaluator
    evaluator.k = case.num_items - 1
    ranking = evaluator.rank({"params": case.params1}, "valid")
    scores = np.full(expected.shape, -np.inf, np.float32)
    real = np.isfinite(ranking.top_scores[: len(scores)])
    for row, (ids, values, finite) in enumerate(
        zip(ranking.top_ids, ranking.top_scores, real, strict=False)
    ):
        scores[row, ids[finite]] = values[finite]
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


@pytest.mark.parametrize("name", CASES)
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
