"""The recommenders that a config can name, with the paper's settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hyperparameters:
    """How a recommender is trained with one kind of items.

    Attributes:
      lr, weight_decay: for all parameters that do not read images or features.
      batch_size: examples of the task in a step.
      visual_lr, visual_weight_decay: for the parameters that read images or features; None takes
        `lr` and `weight_decay`. For images the vision encoder has its own.
    """

    lr: float
    weight_decay: float
    batch_size: int
    visual_lr: float | None = None
    visual_weight_decay: float | None = None


@dataclass(frozen=True)
class RecommenderSettings:
    """The settings of one recommender: the best ones that the reference's authors found (README).

    Attributes:
      paper: where it was published.
      results: results of the PixelRec paper on Pixel200K, Recall@10 / NDCG@10 in percent: with ids
        or features (Table 5) and with images (Table 6).
      task: changes to `config.task`, among them its name.
      width: D.
      ids: hyperparameters with ids (Table 5).
      pixels: hyperparameters with images (Table 6); None takes those with ids.
      features: hyperparameters with features, of the reference's configs; None takes those with
        images, and for codes those with ids.
      initializer: initializer of id tables.
      feature_initializer: initializer of feature heads.
      feature_head: the feature head, a key of `FEATURE_HEADS`.
      options: options of the user encoder.
      train, eval: changes to these sections.
    """

    paper: str
    results: str
    task: Mapping[str, Any]
    width: int
    ids: Hyperparameters
    pixels: Hyperparameters | None = None
    features: Hyperparameters | None = None
    initializer: str = "normal"
    feature_initializer: str = "normal"
    feature_head: str = "dense"
    options: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] = field(default_factory=dict)


_TRANSFORMER = {"heads": 4, "dropout": 0.1, "init_std": 0.02}

RECOMMENDERS = {
    "mf": RecommenderSettings(
        paper="MF (Rendle et al. 2009)",
        results="Table 5: 1.013 / 0.490. Table 6: RN50 0.357 / 0.169, ViT 0.472 / 0.229",
        task={"name": "pairs"},
        width=4096,
        ids=Hyperparameters(lr=1e-4, weight_decay=0.0, batch_size=512),
        initializer="xavier_normal",
    ),
    "lightgcn": RecommenderSettings(
        paper="LightGCN (He et al. 2020)",
        results="Table 5: 0.929 / 0.461",
        task={"name": "pairs"},
        width=256,
        ids=Hyperparameters(lr=5e-4, weight_decay=0.01, batch_size=1024),
        initializer="xavier_normal",
        options={"layers": 2},
    ),
    "fm": RecommenderSettings(
        paper="FM (Rendle 2010)",
        results="Table 5: 1.357 / 0.679. Table 6: RN50 1.024 / 0.501, ViT 1.124 / 0.543",
        task={"name": "rest_of_window"},
        width=4096,
        ids=Hyperparameters(lr=5e-5, weight_decay=0.0, batch_size=64),
        initializer="xavier_normal",
    ),
    "dssm": RecommenderSettings(
        paper="DSSM (Huang et al. 2013)",
        results="Table 5: 1.401 / 0.701. Table 6: RN50 0.960 / 0.475, ViT 1.242 / 0.617",
        task={"name": "rest_of_window"},
        width=4096,
        ids=Hyperparameters(lr=1e-4, weight_decay=0.0, batch_size=64),
        initializer="xavier_normal",
    ),
    "sasrec": RecommenderSettings(
        paper="SASRec (Kang and McAuley 2018)",
        results="Table 5: 2.500 / 1.350. Table 6: RN50 2.633 / 1.321, ViT 2.583 / 1.292",
        task={"name": "next_item"},
        width=512,
        ids=Hyperparameters(lr=5e-5, weight_decay=0.1, batch_size=64),
        pixels=Hyperparameters(lr=1e-4, weight_decay=0.1, batch_size=64),
        features=Hyperparameters(lr=1e-3, weight_decay=0.0, batch_size=512),
        options={"layers": 2, "mlp_ratio": 2, **_TRANSFORMER},
    ),
    "gru4rec": RecommenderSettings(
        paper="GRU4Rec (Hidasi et al. 2016)",
        results="Table 5: 1.833 / 0.937. Table 6: RN50 2.294 / 1.138, ViT 2.102 / 1.031",
        task={"name": "next_item"},
        width=2048,
        ids=Hyperparameters(lr=1e-4, weight_decay=0.01, batch_size=64),
        initializer="xavier_normal",
        options={"expansion": 2, "show_padding": False},
    ),
    "nextitnet": RecommenderSettings(
        paper="NextItNet (Yuan et al. 2019)",
        results="Table 5: 2.187 / 1.153. Table 6: RN50 2.140 / 1.073, ViT 2.215 / 1.106",
        task={"name": "next_item"},
        width=1024,
        ids=Hyperparameters(lr=5e-4, weight_decay=0.01, batch_size=64),
        pixels=Hyperparameters(lr=1e-4, weight_decay=0.01, batch_size=64),
        initializer="uniform_items",
        options={"kernel_size": 3, "dilations": (1, 4), "repeats": 3, "show_padding": False},
    ),
    "srgnn": RecommenderSettings(
        paper="SRGNN (Wu et al. 2019)",
        results="Table 5: 1.597 / 0.808. Table 6: RN50 2.224 / 1.132, ViT 2.152 / 1.065",
        task={"name": "prefixes"},
        width=512,
        ids=Hyperparameters(lr=5e-5, weight_decay=0.01, batch_size=64),
        pixels=Hyperparameters(lr=1e-4, weight_decay=0.01, batch_size=512),
        initializer="uniform_width",
        options={"steps": 2},
    ),
    "bert4rec": RecommenderSettings(
        paper="BERT4Rec (Sun et al. 2019)",
        results="Table 5: 1.972 / 0.994. Table 6: RN50 2.391 / 1.199, ViT 2.450 / 1.230",
        task={"name": "cloze", "mask_ratio": 0.6},
        width=512,
        ids=Hyperparameters(lr=5e-5, weight_decay=0.1, batch_size=64),
        pixels=Hyperparameters(lr=1e-4, weight_decay=0.1, batch_size=64),
        options={"layers": 2, "mlp_ratio": 1, **_TRANSFORMER},
    ),
    "lightsans": RecommenderSettings(
        paper="LightSANs (Fan et al. 2021)",
        results="Table 5: 2.578 / 1.384. Table 6: RN50 2.417 / 1.226, ViT 2.461 / 1.224",
        task={"name": "prefixes"},
        width=512,
        ids=Hyperparameters(lr=5e-5, weight_decay=0.1, batch_size=512),
        pixels=Hyperparameters(lr=1e-4, weight_decay=0.1, batch_size=512),
        options={
            "layers": 1,
            "interests": 3,
            "mlp_ratio": 2,
            **_TRANSFORMER,
            "query_softmax": False,  # True is the reference's
            "show_padding": False,
        },
    ),
    "vbpr": RecommenderSettings(
        paper="VBPR (He and McAuley 2016)",
        results="Table 5: 0.832 / 0.405, on ids and frozen features",
        task={"name": "pairs"},
        width=4096,
        ids=Hyperparameters(lr=1e-3, weight_decay=0.0, batch_size=512),
        features=Hyperparameters(
            lr=1e-3, weight_decay=0.0, batch_size=512, visual_lr=1e-4, visual_weight_decay=0.1
        ),
        initializer="xavier_normal",
        feature_initializer="xavier_normal",
        feature_head="biased",
    ),
    "acf": RecommenderSettings(
        paper="ACF (Chen et al. 2017)",
        results="Table 5: 0.758 / 0.377, on ids and frozen features of locations",
        task={"name": "rest_of_window"},
        width=128,
        # The reference's batch has 64 rows; an example, a window, makes about eight rows.
        ids=Hyperparameters(lr=1e-4, weight_decay=0.1, batch_size=8),
        feature_initializer="kaiming_normal",
        feature_head="components",
    ),
    "visrank": RecommenderSettings(
        paper="VisRank (Kang et al. 2017)",
        results="Table 5: 0.347 / 0.193, on frozen features, untrained",
        task={"name": "pairs", "history_length": 50},
        width=512,  # not used
        ids=Hyperparameters(lr=0.0, weight_decay=0.0, batch_size=64),
        feature_head="raw",
        options={"average_top_k": 1},
        train={"epochs": 0},  # nothing is trained
        # The cosines of 32 histories of 50 with Pixel200K's catalogue take 1.2 GB.
        eval={"batch_size": 32},
    ),
}
