"""The datasets that a config can name."""

from ml_collections import ConfigDict

from pixelrec_jax.configs.recommenders import RECOMMENDERS


def pixel200k(config: ConfigDict) -> None:
    """Pixel200K, the dataset of Tables 5 and 6, as `pixelrec prepare` prepares it."""
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


def custom(config: ConfigDict) -> None:
    """Your own data, with settings for small data; --config.dataset.path=DIR names its folder.

    The settings are the same for every kind of items, and were chosen by measurement on 7,000 to
    65,000 interactions (docs/first_hour.md). For large data, dataset=pixelrec has the paper's.
    """
    config.dataset = ConfigDict({"name": "custom", "path": "data/custom"})
    with_ids = RECOMMENDERS[config.user.name].ids
    config.width = 128
    # Half the paper's: for the same number of decoded and encoded images, more steps.
    config.train.batch_size = with_ids.batch_size // 2
    config.optim.weight_decay = with_ids.weight_decay
    config.optim.lr, config.optim.visual_lr = 1e-3, 1e-4
    config.train.epochs = min(config.train.epochs, 60)  # VisRank is not trained
    config.train.patience = 15


def toy(config: ConfigDict) -> None:
    """The generated toy catalogue (`pixelrec toy`), small enough to train in minutes."""
    config.dataset = ConfigDict({"name": "toy", "path": "data/toy"})
    config.width = 64
    config.negatives.count = 2
    # On ids these models first learn popularity, and the taste of users only after a plateau.
    slow = config.user.name in ("gru4rec", "nextitnet", "srgnn", "bert4rec")
    on_ids = 3e-3 if slow else 1e-3
    config.optim.lr = config.optim.visual_lr = on_ids if config.item.name == "id" else 2e-3
    config.optim.warmup_steps = 50
    config.train.epochs = min(config.train.epochs, 40)
    config.train.patience = 10 if slow else 3
    config.data.workers = 0  # a worker takes seconds to start


DATASETS = {
    "pixel200k": pixel200k,
    "pixel1m": pixel1m,
    "pixel8m": pixel8m,
    "pixelrec": pixelrec,
    "custom": custom,
    "toy": toy,
}
