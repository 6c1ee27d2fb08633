"""The config of all runs, named by words: --config=pixelrec:user=...,item=...,dataset=...

User encoders, item encoders and datasets are listed in the files beside this one, with the paper's
settings (PixelRec, arXiv 2309.06789; the reference's README lists the best ones of its search). Any
key can be overridden on the command line, as in --config.optim.lr=3e-4. Two more words are
optional: preset=parity adds the reference's quirks, and split=global_time trains on the past and
ranks the future.
"""

from ml_collections import ConfigDict

from pixelrec_jax.configs.base import base
from pixelrec_jax.configs.datasets import DATASETS
from pixelrec_jax.configs.encoders import ENCODERS, EncoderSettings
from pixelrec_jax.configs.recommenders import RECOMMENDERS, Hyperparameters
from pixelrec_jax.system.errors import UserError, nearest


def _set_user(config: ConfigDict, name: str) -> None:
    """Sets the user encoder, task and training to those of a recommender."""
    settings = RECOMMENDERS[name]
    config.width = settings.width
    config.task.update(settings.task)
    config.user = ConfigDict({"name": name, "dtype": "float32", **settings.options})
    config.train.update(settings.train)
    config.eval.update(settings.eval)


def _set_item(config: ConfigDict, name: str) -> None:
    """Sets the item encoder to one of `ITEMS`, for the recommender of the config."""
    settings = RECOMMENDERS[config.user.name]
    pixels = settings.pixels or settings.ids
    if name == "id":
        config.item = ConfigDict(
            {"name": name, "initializer": settings.initializer, "init_std": 0.02}
        )
        _set_hyperparameters(config, settings.ids)
    elif name == "semantic_ids":
        config.item = ConfigDict(
            {
                "name": name,
                "path": "semantic_ids.npy",
                "codebook_size": 512,
                "initializer": "normal",
            }
        )
        _set_hyperparameters(config, settings.features or settings.ids)
    elif name in ENCODERS:
        _set_pixels(config, name, ENCODERS[name], pixels)
    else:
        config.item = ConfigDict(
            {
                "name": name,
                "path": "features.npy",
                "feature_head": settings.feature_head,
                "dnn_layers": (),
                "initializer": settings.feature_initializer,
            }
        )
        _set_hyperparameters(config, settings.features or pixels)


def _set_pixels(
    config: ConfigDict, name: str, encoder: EncoderSettings, hyperparameters: Hyperparameters
) -> None:
    config.item = ConfigDict(
        {
            "name": name,
            "image_size": encoder.image_size,
            "weights": encoder.weights,
            "trainable": encoder.trainable,
            "frozen_in_train_mode": False,
            "pool": encoder.pool,
            "dnn_layers": (),
            "normalisation": "half",
            "source": "stream",
            "cache_dir": "",
            "cache_dtype": "exact",
            "remat": False,
            "dtype": "float32",
            **encoder.options,
        }
    )
    _set_hyperparameters(config, hyperparameters)
    config.optim.visual_lr, config.optim.visual_weight_decay = 1e-4, encoder.weight_decay
    config.data.slot_buckets = 2
    config.data.workers = 1


def _set_hyperparameters(config: ConfigDict, chosen: Hyperparameters) -> None:
    optim = config.optim
    optim.lr, optim.weight_decay = chosen.lr, chosen.weight_decay
    optim.visual_lr = chosen.lr if chosen.visual_lr is None else chosen.visual_lr
    optim.visual_weight_decay = (
        chosen.weight_decay if chosen.visual_weight_decay is None else chosen.visual_weight_decay
    )
    config.train.batch_size = chosen.batch_size


def leave_one_out(config: ConfigDict) -> None:
    """The paper's split: the last two interactions of each user are the targets (section 4.1)."""
    config.dataset.split = ConfigDict({"name": "leave_one_out"})


def global_time(config: ConfigDict) -> None:
    """Training data is everything before the time `valid_from`; see docs/splits.md.

    `valid_from` and `test_from` are timestamps, or the fractions of interactions before them.
    """
    config.dataset.split = ConfigDict({"name": "global_time", "valid_from": 0.8, "test_from": 0.9})


def default(config: ConfigDict) -> None:
    """The default: the reference without its quirks."""


def parity(config: ConfigDict) -> None:
    """The reference to the last digit, with its quirks.

    The loss is -log(sigmoid(x) + 1e-8), except for MF, LightGCN and SR-GNN. FM and DSSM on ids
    learn only from the first row of a batch. GRU4Rec, NextItNet and LightSANs see padding. The
    attention of LightSANs sums to one over queries. Frozen blocks are in train mode.
    """
    config.loss.epsilon = 0.0 if config.user.name in ("mf", "lightgcn", "srgnn") else 1e-8
    config.loss.single_row = config.user.name in ("fm", "dssm") and config.item.name == "id"
    for section, key in (
        ("user", "show_padding"),
        ("user", "query_softmax"),
        ("item", "frozen_in_train_mode"),
    ):
        if key in config[section]:
            config[section][key] = True


USERS = RECOMMENDERS
# Ids, frozen features alone (ViNet of Table 5) or with ids, codes of a quantiser, or images.
ITEMS = ("id", "features", "id+features", "semantic_ids", *ENCODERS)
SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}
PRESETS = {"default": default, "parity": parity}


def get_config(words: str = "") -> ConfigDict:
    """Returns the config of words such as "user=sasrec,item=clip_vit_b32,dataset=pixel200k".

    Raises:
      UserError: a word is unknown.
    """
    chosen = {
        "user": "sasrec",
        "item": "clip_vit_b32",
        "dataset": "pixel200k",
        "split": "leave_one_out",
        "preset": "default",
    }
    choices = {
        "user": USERS,
        "item": ITEMS,
        "dataset": DATASETS,
        "split": SPLITS,
        "preset": PRESETS,
    }
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key not in chosen:
            raise UserError(f"--config: unknown word {word!r}{nearest(key, chosen)}")
        chosen[key] = value
    for key, value in chosen.items():
        if value not in choices[key]:
            raise UserError(f"--config: unknown {key}={value!r}{nearest(value, choices[key])}")
    config = base()
    _set_user(config, chosen["user"])
    _set_item(config, chosen["item"])
    # The dataset comes after the models, as a small one may change the training settings.
    DATASETS[chosen["dataset"]](config)
    SPLITS[chosen["split"]](config)
    PRESETS[chosen["preset"]](config)
    return config.lock()
