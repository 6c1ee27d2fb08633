"""Every run is named by three words: --config=configs/pixelrec.py:user=...,item=...,dataset=...

One function per user encoder, item encoder and dataset, each with the paper's settings
(PixelRec, arXiv 2309.06789; the reference's README lists the searched optimum). Anything can be
overridden on the command line, as in --config.optim.lr=3e-4.
"""

from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError, nearest


def base() -> ConfigDict:
    """Settings that all rows of the paper share."""
    return ConfigDict(
        {
            "seed": 2020,
            "width": 512,  # D, of item and user vectors
            "dataset": {"name": "", "path": ""},
            "task": {"name": "next_item", "history_length": 10, "negatives": 1},
            "user": {},
            "item": {},
            # 0 is the stable form; 1e-8 reproduces the reference's -log(sigmoid(x) + 1e-8).
            "loss": {"epsilon": 0.0},
            "optim": {
                "lr": 1e-4,  # of everything but the item encoder
                "weight_decay": 0.1,
                "item_lr": 1e-4,  # of the item encoder: id table, or trunk and head
                "item_weight_decay": 0.0,
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
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )


def sasrec(config: ConfigDict) -> None:
    """SASRec of Table 5 and 6: D 512, 2 layers, 4 heads, dropout 0.1, batch 64."""
    config.user = ConfigDict(
        {
            "name": "sasrec",
            "layers": 2,
            "heads": 4,
            "inner": 2,
            "dropout": 0.1,
            "init_std": 0.02,
            "dtype": "float32",
        }
    )


def id_table(config: ConfigDict) -> None:
    """IDNet of Table 5: SASRec with learning rate 5e-5 and weight decay 0.1."""
    config.item = ConfigDict({"name": "id", "init_std": 0.02})
    config.optim.lr = config.optim.item_lr = 5e-5
    config.optim.weight_decay = config.optim.item_weight_decay = 0.1


def _pixels(config: ConfigDict, name: str, *, image_size: int, weights: str) -> None:
    config.item = ConfigDict(
        {
            "name": name,
            "image_size": image_size,
            "weights": weights,  # file, folder or owner/name[@revision] of the hub; "" is random
            "trainable": "all",  # "all", "none", "last:2" or block names by commas
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "remat": False,
            "dtype": "float32",
        }
    )
    config.data.slot_buckets = 16
    config.data.workers = 1


def clip_vit_b32(config: ConfigDict) -> None:
    """PixelNet with ViT of Table 6: the last two blocks of CLIP ViT-B/32 are fine-tuned."""
    _pixels(config, "clip_vit_b32", image_size=224, weights="openai/clip-vit-base-patch32")
    config.item.trainable = "last:2"


def vit_toy(config: ConfigDict) -> None:
    """A small ViT trained from scratch, for the toy catalogue and for laptops."""
    _pixels(config, "vit_toy", image_size=32, weights="")


def pixel200k(config: ConfigDict) -> None:
    """Pixel200K, the dataset of Tables 5 and 6, as prepared by pixelrec_jax.prepare."""
    config.dataset = ConfigDict({"name": "pixel200k", "path": "data/pixel200k"})


def own(config: ConfigDict) -> None:
    """Any prepared dataset; say where with --config.dataset.path=DIR."""
    config.dataset = ConfigDict({"name": "own", "path": "data/own"})


def toy(config: ConfigDict) -> None:
    """The generated toy catalogue (pixelrec_jax.data.toy), small enough to train in minutes."""
    config.dataset = ConfigDict({"name": "toy", "path": "data/toy"})
    config.width = 64
    config.task.negatives = 2
    config.optim.lr = config.optim.item_lr = 1e-3 if config.item.name == "id" else 2e-3
    config.optim.warmup_steps = 50
    config.train.epochs = 40
    config.train.patience = 3
    config.data.workers = 0  # a worker process takes seconds to start


USERS = {"sasrec": sasrec}
ITEMS = {"id": id_table, "clip_vit_b32": clip_vit_b32, "vit_toy": vit_toy}
DATASETS = {"pixel200k": pixel200k, "own": own, "toy": toy}


def get_config(words: str = "") -> ConfigDict:
    """Builds the config that "user=sasrec,item=clip_vit_b32,dataset=pixel200k" names."""
    chosen = {"user": "sasrec", "item": "clip_vit_b32", "dataset": "pixel200k"}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key not in chosen:
            raise UserError(f"--config: unknown word {word!r}{nearest(key, chosen)}")
        chosen[key] = value
    config = base()
    # The dataset comes last: a small one may ask for other training settings.
    for key, choices in (("user", USERS), ("item", ITEMS), ("dataset", DATASETS)):
        if chosen[key] not in choices:
            raise UserError(
                f"--config: unknown {key}={chosen[key]!r}{nearest(chosen[key], choices)}"
            )
        choices[chosen[key]](config)
    return config.lock()
