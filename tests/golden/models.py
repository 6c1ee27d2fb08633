"""How the golden files map to models of ours: names of tensors, layouts of batches, cases."""

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from pixelrec_jax.items.vision.clip_vit import HUGGINGFACE
from pixelrec_jax.weights.mapping import Rule, linear, norm
from pixelrec_jax.weights.transforms import LINEAR, Transform

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
ITEM = (  # of models on ids, on features and on images
    Rule("item_embedding.weight", "item_encoder/table"),
    Rule("embedding.weight", "item_encoder/table"),
    *linear("item_embedding.rec_fc.0", "item_encoder/head"),
    Rule("item_embedding.item_id_embedding.weight", "item_encoder/ids/table"),
    Rule("item_embedding.pq_code_embedding.weight", "item_encoder/codebook"),
    Rule("item_id_embedding.weight", "item_encoder/ids/table"),
    Rule("feature_projection.weight", "item_encoder/visual/kernel", LINEAR),
    Rule("bias_projection.weight", "item_encoder/bias/kernel", LINEAR),
    Rule("item_model.weight", "item_encoder/ids/table"),
    *linear("user_model.feats.dim_reductor", "item_encoder/location"),
    *(
        Rule(_TOWER + rule.source, "item_encoder/backbone/" + rule.target, rule.transform)
        for rule in HUGGINGFACE.rules
    ),
    *linear("visual_encoder.rec_fc.0", "item_encoder/head"),
)
MF = (Rule("user_embedding.weight", "user_encoder/table"),)
ACF = (
    Rule("user_model.user_embedding.weight", "user_encoder/table"),
    *linear("user_model.feats.w_x", "user_encoder/location"),
    *linear("user_model.feats.w_u", "user_encoder/location_user"),
    Rule("user_model.feats.w.weight", "user_encoder/location_attention/kernel", LINEAR),
    *linear("user_model.w_u", "user_encoder/user"),
    *linear("user_model.w_p", "user_encoder/item"),
    *linear("user_model.w_x", "user_encoder/looks"),
    Rule("user_model.w.weight", "user_encoder/item_attention/kernel", LINEAR),
)
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
# The backbone's softmax is over keys, that of the user encoder over queries.
QUERY_SOFTMAX_NOISE = r"item_encoder/.*/key/bias|user_encoder/.*query/bias"
IGNORED = (r".*\.position_ids", r".*\.post_layernorm\..*", r"gnn\.linear_edge_f\..*")


@dataclass(frozen=True)
class Case:
    """How a golden file maps to a config of ours.

    Attributes:
      user: the recommender.
      rules: names of the reference's and our parameters, those of the item encoder aside.
      layout: of the batch, a key of `LAYOUTS`; None if there is no training.
      options: of the user encoder.
      item: the item encoder, of models that are not on images.
      entries: of our item vectors, those that the file has: first and one past the last.
      ignored: tensors that the reference keeps and does not use, see `WeightMapping`.
      noise: regular expression of parameters with a gradient that is zero except for rounding. A
        key's bias adds the same to all logits of a query, which softmax ignores.
      rounding: how far the file's gradients are from the same computed in float64, relative to the
        largest magnitude, where that is more than two thirds of the tolerance.
    """

    user: str
    rules: tuple[Rule, ...]
    layout: str | None
    options: dict[str, object] = field(default_factory=dict)
    item: str = "id"
    entries: tuple[int, int] = (0, 16)
    ignored: tuple[str, ...] = ()
    noise: str = r".*/key/bias"
    rounding: dict[str, float] = field(default_factory=dict)

    def is_noise(self, path: tuple[str, ...]) -> bool:
        """Returns whether the gradient of a parameter is zero except for rounding."""
        return re.fullmatch(self.noise, "/".join(path)) is not None


# Every model, and its pixel twin with the prefix MO.
CASES = {
    "SASRec": Case("sasrec", SASREC, "next_item"),
    "MF": Case("mf", MF, "pairs"),
    "FM": Case("fm", (), "one_tower"),
    "DSSM": Case("dssm", (), "two_tower", ignored=("user_embedding.weight",)),
    "GRU4Rec": Case("gru4rec", GRU, "next_item", {"expansion": 1}),
    "NextItNet": Case("nextitnet", NEXTITNET, "next_item"),
    "SRGNN": Case("srgnn", SRGNN, "graph"),
    "BERT4Rec": Case("bert4rec", SASREC, "cloze"),
    "LightSANs": Case("lightsans", LIGHTSANS, "two_tower", noise=QUERY_SOFTMAX_NOISE),
}
CASES |= {f"MO{name}": case for name, case in CASES.items()}
CASES["LightGCN"] = Case("lightgcn", MF, "pairs", {"layers": 2})
# The reference's score of a factorisation machine is a difference of squared sums, whose rounding
# comes back in its gradients.
CASES["MOFM"] = replace(
    CASES["MOFM"],
    rounding={
        "item_encoder/backbone/block_1/key/kernel": 7.35e-6,
        "item_encoder/backbone/block_1/norm_1/scale": 9.29e-6,
        "item_encoder/backbone/block_2/norm_1/scale": 8.24e-6,
        "item_encoder/backbone/block_2/out/kernel": 6.78e-6,
        "item_encoder/backbone/block_2/value/kernel": 1.01e-5,
    },
)
# Models on features. A softmax ignores the biases of ACF's logits.
CASES |= {
    "VBPR": Case("vbpr", MF, "pairs", item="id+features", entries=(8, 16)),
    "ACF": Case(
        "acf",
        ACF,
        "attentive",
        item="id+features",
        ignored=(r"user_model\.(feats\.)?w\.bias",),
    ),
    "VISRANK": Case("visrank", (), None, item="features", ignored=("placeholder",)),
    "FSASRec_v": Case("sasrec", SASREC, "next_item", item="features"),
    "FSASRec_vid": Case("sasrec", SASREC, "next_item", item="id+features"),
    "FSASRec_sid": Case("sasrec", SASREC, "next_item", item="semantic_ids"),
}
TRAINED = [name for name, case in CASES.items() if case.layout]


class ReferenceRows(NamedTuple):
    """A batch of the reference in item ids, with the names and shapes of `data.types.Batch`."""

    user: np.ndarray
    history: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    weight: np.ndarray


def _rows(history, positive, negative, user=None, weight=None) -> ReferenceRows:
    """Rows of item ids; one target each unless there are weights."""
    one_target = positive.ndim == 1
    positive = positive[:, None] if one_target else positive
    return ReferenceRows(
        user=np.ones(len(history), np.int32) if user is None else user.astype(np.int32),
        history=history.astype(np.int32),
        positive=positive.astype(np.int32),
        negative=negative.reshape(*positive.shape, 1).astype(np.int32),
        weight=np.ones(positive.shape, np.float32) if weight is None else weight,
    )


def _next_item(file) -> ReferenceRows:
    ids = file["batch.0"]
    if ids.ndim == 2:  # images of positives and negatives are interleaved
        ids = ids.reshape(len(ids), -1, 2).transpose(0, 2, 1)
    weight = file["batch.1"].astype(np.float32)
    return _rows(ids[:, 0, :-1], ids[:, 0, 1:], ids[:, 1, 1:], weight=weight)


def _pairs(file) -> ReferenceRows:
    positive, negative = file["batch.1"].T
    history = np.zeros((len(positive), 10))
    return _rows(history, positive, negative, user=file["batch.0"])


def _ids(file) -> np.ndarray:
    """A batch of ids, or of indices into a list of images."""
    return file["batch"] if "batch" in file else file["batch.1"][file["batch.0"]]


def _one_tower(file) -> ReferenceRows:
    ids = _ids(file)
    return _rows(ids[:, 0, :-1], ids[:, 0, -1], ids[:, 1, -1])


def _two_tower(file) -> ReferenceRows:
    ids = _ids(file)
    return _rows(ids[:, :-2], ids[:, -2], ids[:, -1])


def _attentive(file) -> ReferenceRows:
    ids, user = file["batch"][:, :-1], file["batch"][:, -1]
    return _rows(ids[:, :-2], ids[:, -2], ids[:, -1], user=user)


def _cloze(file) -> ReferenceRows:
    if file["batch.0"].ndim == 3:
        history, positive, negative = file["batch.0"].transpose(1, 0, 2)
        weight = file["batch.1"]
    else:  # images of masked, original and negative items are interleaved
        history, weight = file["batch.0"], file["batch.2"]
        _, positive, negative = file["batch.1"].reshape(len(history), -1, 3).transpose(2, 0, 1)
    positive, negative = positive * weight, negative * weight
    return _rows(history, positive, negative, weight=weight.astype(np.float32))


def _graph(file) -> ReferenceRows:
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
    "attentive": _attentive,
    "cloze": _cloze,
    "graph": _graph,
}
