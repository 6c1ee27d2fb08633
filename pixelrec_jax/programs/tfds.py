"""Builds a config of the TFDS dataset `pixelrec`, on this machine or on an Apache Beam runner.

pixelrec tfds --config=own_items --images=DIR --out=DIR
"""

import sys
from collections.abc import Sequence

from absl import flags

from pixelrec_jax.system import program


def _define_flags() -> None:
    flags.DEFINE_string(
        "config",
        None,
        "own_items or own_interactions, or a config of PixelRec such as pixel200k_items",
        required=True,
    )
    program.define_path("out", None, "folder of TFDS datasets", required=True)
    program.define_path("interactions", None, "CSV: item_id,user_id,timestamp")
    program.define_path("images", None, "folder of <item_id>.jpg")
    program.define_path("item_info", None, "CSV of attributes by item_id")
    flags.DEFINE_enum("missing", "error", ["error", "drop"], "for items without a usable image")
    flags.DEFINE_string("beam_runner", None, "DirectRunner, DataflowRunner, FlinkRunner, ...")
    flags.DEFINE_list("beam_options", [], "options of the runner: project=P,region=R,...")


def main(_: Sequence[str]) -> None:
    """Builds the dataset that the flags name and prints what it holds."""
    import tensorflow_datasets

    from pixelrec_jax.ingest.tfds.build import build

    values = flags.FLAGS
    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    builder = build(
        values.config,
        values.out,
        beam_runner=values.beam_runner,
        beam_options=values.beam_options,
        interactions=values.interactions,
        images=values.images,
        item_info=values.item_info,
        missing=values.missing,
    )
    config = builder.builder_config
    split = builder.info.splits[config.split]
    print(f"Built {builder.data_dir}: {split.num_examples:,} {config.split}")
    if config.published not in (None, split.num_examples):
        print(f"  the published {config.name} has {config.published:,}: these are other files")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
