"""Writes the features of a frozen vision encoder, at any layer, as a matrix with a row per item.

pixelrec extract --data=data/custom --item=efficientnet_lite0 [--layer=stage_5]
pixelrec extract --data=data/custom --workdir=runs/pixel [--layer=vector]

The first form takes published weights, the second the encoder of a trained run. `item=features`
reads the default file, DATA/features.npy.
"""

import math
import time
from collections.abc import Sequence

from absl import flags

from pixelrec_jax.configs.loading import SHIPPED
from pixelrec_jax.system import program, storage

_SETTINGS = ("weights", "image_size", "pool", "normalisation")  # of --item


def _define_flags() -> None:
    program.define_path("data", None, "folder of the prepared dataset", required=True)
    flags.DEFINE_string("item", None, "a vision encoder with published weights; or give --workdir")
    program.define_path("workdir", None, "folder of a trained run, to take its encoder")
    program.define_path("config", SHIPPED, "config with the settings of --item; or a file, FILE.py")
    program.define_path("weights", None, "as item.weights; default those of the config")
    flags.DEFINE_integer(
        "image_size", None, "default that of the dataset, or else of the encoder", lower_bound=1
    )
    flags.DEFINE_string("pool", None, "as item.pool; default that of the config")
    flags.DEFINE_string("normalisation", None, "as item.normalisation; default checkpoint")
    flags.DEFINE_string(
        "layer", None, "a block of the backbone, or vector; default the backbone's end"
    )
    flags.DEFINE_boolean("average", False, "take the mean over tokens or pixels")
    program.define_path("out", None, "file to write; default features.npy in --data")
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "of the file")
    flags.DEFINE_integer("batch_size", 64, "images at once on each device", lower_bound=1)
    flags.DEFINE_boolean("overwrite", False, "replace the file if it exists")


def main(_: Sequence[str]) -> None:
    """Extracts the features that the flags describe."""
    import numpy as np

    from pixelrec_jax.data.interactions import load_interactions
    from pixelrec_jax.runs.extract import check_output, choose_encoder, extract
    from pixelrec_jax.system.start_jax import start_jax

    start_jax()
    values = flags.FLAGS
    interactions = load_interactions(values.data)
    out = storage.path(values.out or f"{values.data}/features.npy")
    check_output(interactions, out, overwrite=values.overwrite)
    changes = {name: values[name].value for name in _SETTINGS}
    encoder = choose_encoder(
        interactions,
        item=values.item,
        workdir=values.workdir,
        config=values.config,
        changes={name: value for name, value in changes.items() if value is not None},
    )
    start = time.perf_counter()
    description = extract(
        interactions,
        encoder,
        out,
        layer=values.layer,
        average=values.average,
        dtype=values.dtype,
        batch_size=values.batch_size,
    )
    rows, *shape = description["shape"]
    size = math.prod(description["shape"]) * np.dtype(values.dtype).itemsize
    speed = (rows - 1) / (time.perf_counter() - start)
    print(
        f"{out}: {rows - 1:,} items, {' x '.join(map(str, shape))} {values.dtype} each, "
        f"{size / 1e6:,.1f} MB, {speed:,.1f} images/s"
    )


if __name__ == "__main__":
    _define_flags()
    program.run(main)
