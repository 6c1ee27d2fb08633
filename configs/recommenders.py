"""The recommenders that a config can name, with the paper's settings."""

_TRANSFORMER = {"heads": 4, "dropout": 0.1, "init_std": 0.02}


def mf() -> dict:
    """MF (Rendle et al. 2009).

    Table 5: 1.013 / 0.490. Table 6: RN50 0.357 / 0.169, ViT 0.472 / 0.229.
    """
    return {
        "task": {"name": "pairs"},
        "width": 4096,
        "ids": (1e-4, 0.0, 512),
        "pixels": (1e-4, 0.0, 512),
        "initializer": "xavier_normal",
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
        "initializer": "xavier_normal",
        "options": {"layers": 2},
    }


def fm() -> dict:
    """FM (Rendle 2010).

    Table 5: 1.357 / 0.679. Table 6: RN50 1.024 / 0.501, ViT 1.124 / 0.543.
    """
    return {
        "task": {"name": "rest_of_window"},
        "width": 4096,
        "ids": (5e-5, 0.0, 64),
        "pixels": (5e-5, 0.0, 64),
        "initializer": "xavier_normal",
    }


def dssm() -> dict:
    """DSSM (Huang et al. 2013).

    Table 5: 1.401 / 0.701. Table 6: RN50 0.960 / 0.475, ViT 1.242 / 0.617.
    """
    return {
        "task": {"name": "rest_of_window"},
        "width": 4096,
        "ids": (1e-4, 0.0, 64),
        "pixels": (1e-4, 0.0, 64),
        "initializer": "xavier_normal",
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
        "options": {"layers": 2, "mlp_ratio": 2, **_TRANSFORMER},
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
        "initializer": "xavier_normal",
        "options": {"expansion": 2, "show_padding": False},
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
        "initializer": "uniform_items",
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
        "initializer": "uniform_width",
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
        "options": {"layers": 2, "mlp_ratio": 1, **_TRANSFORMER},
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
            "mlp_ratio": 2,
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
        "initializer": "xavier_normal",
        "feature_initializer": "xavier_normal",
        "feature_head": "biased",
    }


def acf() -> dict:
    """ACF (Chen et al. 2017), on ids and frozen features of locations.

    Table 5: 0.758 / 0.377.
    """
    return {
        "task": {"name": "rest_of_window"},
        "width": 128,
        # Its batches are of 64 rows; an example, a window, makes about eight of them.
        **dict.fromkeys(("ids", "pixels", "features"), (1e-4, 0.1, 8)),
        "feature_initializer": "kaiming_normal",
        "feature_head": "components",
    }


def visrank() -> dict:
    """VisRank (Kang et al. 2017), on frozen features, untrained.

    Table 5: 0.347 / 0.193.
    """
    return {
        "task": {"name": "pairs", "history_length": 50},
        "width": 512,  # not used
        **dict.fromkeys(("ids", "pixels", "features"), (0.0, 0.0, 64)),
        "feature_head": "raw",
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
