"""Every run is named by three words: --config=configs/pixelrec.py:user=...,item=...,dataset=...

One function or entry per user encoder, item encoder and dataset, each with the paper's settings
(PixelRec, arXiv 2309.06789; the reference's README lists the searched optimum). Anything can be
overridden on the command line, as in --config.optim.lr=3e-4. A fourth word, preset=parity, turns on
what the reference does by oversight; a fifth, split=global_time, trains on the past and ranks the
future.
"""

from functools import partial

from ml_collections import ConfigDict
from pixelrec_jax.configs.datasets import DATASETS
from pixelrec_jax.configs.encoders import ENCODERS
from pixelrec_jax.configs.recommenders import RECOMMENDERS

from pixelrec_jax.system.errors import UserError, nearest


def base() -> ConfigDict:
    """Settings that all rows of the paper share."""
    return ConfigDict(
        {
            "seed": 2020,
            "width": 512,  # D, of item and user vectors
            "dataset": {"name": "", "path": ""},
            # The folder of a finished run whose item encoder this one starts with (Table 7); "all":
            # with all that is learned but of users, who are others there. "" is no such run.
            "warm_start": {"run": "", "scope": "item"},
            "task": {"name": "next_item", "history_length": 10, "negatives": 1},
            "user": {},
            "item": {},
            # 0 is the stable form; 1e-8 reproduces the reference's -log(sigmoid(x) + 1e-8).
            "loss": {
                "epsilon": 0.0,
                "single_row": False,  # True: only the first row of a batch, as the reference's FM
            },
            "optim": {
                "lr": 1e-4,  # of all but what looks at images or features, so of id tables, too
                "weight_decay": 0.1,
                "visual_lr": 1e-4,  # of what does: backbone, head and other projections
                "visual_weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "warmup_steps": 0,
                "clip_norm": 0.0,  # 0 does not clip
            },
            "train": {
                "batch_size": 64,  # sequences, over all devices
                "epochs": 200,
                "patience": 30,  # evaluations without improvement
                "eval_every": 1,  # epochs
                "checkpoint_every": 1000,  # steps; there is one after every evaluation, too
                "log_every": 50,  # steps
            },
            "eval": {
                "ks": (5, 10),
                "monitor": "ndcg@10",  # decides the best checkpoint and early stopping
                "batch_size": 1024,  # users ranked at once
                "encode_batch_size": 128,  # items encoded at once on each device
                "chunk": 32768,  # items scored at once on each device; bounds the memory
                "cold_threshold": 3,  # a target with at most so many training interactions is cold
            },
            "data": {
                "workers": 0,  # processes that decode images; 0 decodes in threads
                "threads": 2,  # in each of them
                "prefetch": 2,  # batches each may be ahead; a batch of images takes megabytes
                "slot_buckets": 1,  # how many sizes the set of distinct items of a batch may take
            },
            # Devices by axis: "data" and "fsdp" split the batch, "fsdp" also parameters of at least
            # so many entries, "tensor" heads and hidden units; the last two split rows of tables.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "fsdp_min_size": 2**16},
        }
    )


def _user(config: ConfigDict, name: str) -> None:
    """A recommender of `RECOMMENDERS`."""
    settings = RECOMMENDERS[name]
    config.width = settings["width"]
    config.task.update(settings["task"])
    config.user = ConfigDict({"name": name, "dtype": "float32", **settings.get("options", {})})
    for section in ("train", "eval"):
        config[section].update(settings.get(section, {}))


def _optimum(
    config: ConfigDict,
    lr: float,
    weight_decay: float,
    batch_size: int,
    visual: tuple[float, float] | None = None,
) -> None:
    optim = config.optim
    optim.lr, optim.weight_decay = lr, weight_decay
    optim.visual_lr, optim.visual_weight_decay = visual or (lr, weight_decay)
    config.train.batch_size = batch_size


# One function per recommender. Its docstring has the paper's results on Pixel200K, Recall@10 /
# NDCG@10 in percent, on ids or features (Table 5) and on images (Table 6). The settings are those
# that the reference's authors found best (its README): `ids` for Table 5 and `pixels` for Table 6
# are learning rate, weight decay, examples a batch and, where they differ, rate and decay of
# `optim.visual_*`; `features` are of the reference's configs, or those of `pixels`. `initializer`
# and `feature_initializer` are of id tables and of encoders of features, `feature_head` is what the
# latter make,
# `options` are the user encoder's.


def id_table(config: ConfigDict) -> None:
    """IDNet of Table 5."""
    settings = RECOMMENDERS[config.user.name]
    init = settings.get("initializer", "normal")
    config.item = ConfigDict({"name": "id", "initializer": init, "init_std": 0.02})
    _optimum(config, *settings["ids"])


def _features(config: ConfigDict, name: str) -> None:
    """A frozen matrix of features, alone or beside ids (ViNet of Table 5; Figure 10)."""
    settings = RECOMMENDERS[config.user.name]
    config.item = ConfigDict(
        {
            "name": name,
            "path": "features.npy",  # relative to the folder of the dataset
            "feature_head": settings.get(
                "feature_head", "dense"
            ),  # how features become a vector, see the encoders
            "dnn_layers": (),  # widths of dense layers below the projection (Figure 10)
            "initializer": settings.get("feature_initializer", "normal"),
        }
    )
    _optimum(config, *settings.get("features", settings["pixels"]))


def semantic_ids(config: ConfigDict) -> None:
    """Codes of a quantiser instead of an id: a row of whole numbers for every item."""
    settings = RECOMMENDERS[config.user.name]
    config.item = ConfigDict(
        {
            "name": "semantic_ids",
            "path": "semantic_ids.npy",  # relative to the folder of the dataset
            "codebook_size": 512,
            "initializer": "normal",
        }
    )
    _optimum(config, *settings.get("features", settings["ids"]))


def _pixels(
    config: ConfigDict,
    *,
    name: str,
    weights: str,
    trainable: str = "last:2",
    pool: str = "mean",
    image_size: int = 224,
    weight_decay: float = 0.0,
    **options: float,
) -> None:
    """PixelNet with one of `ENCODERS`; `options` are the backbone's own."""
    config.item = ConfigDict(
        {
            "name": name,
            "image_size": image_size,
            # File, folder, URL, package:NAME or owner/name[@revision] of the hub; "" is random.
            "weights": weights,
            "trainable": trainable,  # "all", "none", "last:2" or block names by commas
            # True: frozen blocks, too, use batch statistics and drop paths, as in the reference.
            "frozen_in_train_mode": False,
            "pool": pool,
            "dnn_layers": (),  # widths of dense layers between backbone and projection (Figure 10)
            "normalisation": "half",  # the reference's; or "checkpoint", "imagenet", "clip"
            "remat": False,
            "dtype": "float32",
            **options,
        }
    )
    _optimum(config, *RECOMMENDERS[config.user.name]["pixels"])
    config.optim.visual_lr, config.optim.visual_weight_decay = 1e-4, weight_decay
    config.data.slot_buckets = 16
    config.data.workers = 1


USERS = {name: partial(_user, name=name) for name in RECOMMENDERS}
ITEMS = {
    "id": id_table,
    "features": partial(_features, name="features"),
    "id+features": partial(_features, name="id+features"),
    "semantic_ids": semantic_ids,
} | {name: partial(_pixels, name=name, **settings) for name, settings in ENCODERS.items()}


def leave_one_out(config: ConfigDict) -> None:
    """The paper's split: every user's last two interactions are the targets (section 4.1)."""
    config.dataset.split = ConfigDict({"name": "leave_one_out"})


def global_time(config: ConfigDict) -> None:
    """Nothing from `valid_from` on is trained on; see docs/splits.md.

    Both are timestamps of the dataset, or the fraction of all interactions before them.
    """
    config.dataset.split = ConfigDict({"name": "global_time", "valid_from": 0.8, "test_from": 0.9})


def default(config: ConfigDict) -> None:
    """The default: where the reference has a quirk, what one would expect."""


def parity(config: ConfigDict) -> None:
    """The reference to the last digit, quirks included.

    Its loss is -log(sigmoid(x) + 1e-8), but for MF, LightGCN and SR-GNN; its FM and DSSM on ids
    learn from the first row of a batch only; GRU4Rec, NextItNet and LightSANs see padding;
    LightSANs' attention sums to one over queries; frozen blocks are in train mode.
    """
    config.loss.epsilon = 0.0 if config.user.name in ("mf", "lightgcn", "srgnn") else 1e-8
    config.loss.single_row = config.user.name in ("fm", "dssm") and config.item.name == "id"
    for part, key in (
        ("user", "show_padding"),
        ("user", "query_softmax"),
        ("item", "frozen_in_train_mode"),
    ):
        if key in config[part]:
            config[part][key] = True


SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}
PRESETS = {"default": default, "parity": parity}


def get_config(words: str = "") -> ConfigDict:
    """Builds the config that "user=sasrec,item=clip_vit_b32,dataset=pixel200k" names."""
    chosen = {
        "user": "sasrec",
        "item": "clip_vit_b32",
        "dataset": "pixel200k",
        "split": "leave_one_out",
        "preset": "default",
    }
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key not in chosen:
            raise UserError(f"--config: unknown word {word!r}{nearest(key, chosen)}")
        chosen[key] = value
    config = base()
    # The dataset comes after the models: a small one may ask for other training settings.
    parts = {
        "user": USERS,
        "item": ITEMS,
        "dataset": DATASETS,
        "split": SPLITS,
        "preset": PRESETS,
    }
    for key, choices in parts.items():
        if chosen[key] not in choices:
            raise UserError(
                f"--config: unknown {key}={chosen[key]!r}{nearest(chosen[key], choices)}"
            )
        choices[chosen[key]](config)
    return config.lock()
