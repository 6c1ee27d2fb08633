"""Prepares a dataset for training: interactions + images -> one directory.

pixelrec prepare --interactions=X.csv --images=DIR --out=DIR --min_interactions=5

Order of work: repeats are dropped, then users below --min_interactions, then users outside of
--sample. The images of the items that are left are checked. If --missing=drop removes items,
--min_interactions is applied once more.
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.ingest.options import CHOICES, IMAGE_SIZE
from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    program.define_path("interactions", None, "table: item_id,user_id,timestamp", required=True)
    flags.DEFINE_list("columns", [], "names in the file: item_id=article_id,timestamp=t_dat")
    program.define_path("images", None, "folder, tar, zip, LMDB or TFDS dataset; default none")
    program.define_path("item_info", None, "table: item_id and any attributes of items")
    program.define_path("out", None, "folder to create", required=True)
    flags.DEFINE_integer("min_interactions", 0, "drop users with fewer interactions")
    flags.DEFINE_string("sample", "", "number of random users, or pixel200k, pixel1m, pixel8m")
    flags.DEFINE_integer("seed", 0, "seed of --sample")
    flags.DEFINE_enum("items", "interactions", CHOICES["items"], "or all that have an image")
    flags.DEFINE_enum("missing", "error", CHOICES["missing"], "for items without a usable image")
    flags.DEFINE_enum("store", "original", CHOICES["store"], "files as they are, or raw pixels")
    flags.DEFINE_integer(
        "image_size", None, f"pixels per side for --store=resized; default {IMAGE_SIZE}"
    )
    flags.DEFINE_enum("repeats", "keep", CHOICES["repeats"], "a user's repeats of an item")
    flags.DEFINE_enum(
        "timestamp_unit", "auto", CHOICES["timestamp_unit"], "auto recognises times since 1970"
    )


def main(_: Sequence[str]) -> None:
    """Prepares the dataset that the flags name and prints what it holds."""
    from pixelrec_jax.ingest import column_names
    from pixelrec_jax.ingest.columns import COLUMNS
    from pixelrec_jax.ingest.prepare import prepare
    from pixelrec_jax.ingest.summary import summary

    values = flags.FLAGS
    for name in ("interactions", "images", "item_info", "out"):
        storage.local_only(values[name].value, name, written=name == "out")
    columns = column_names.parse(values.columns, COLUMNS)
    manifest = prepare(
        values.interactions,
        values.images,
        values.out,
        item_info=values.item_info,
        min_interactions=values.min_interactions,
        sample=values.sample,
        seed=values.seed,
        missing=values.missing,
        store=values.store,
        image_size=values.image_size,
        repeats=values.repeats,
        timestamp_unit=values.timestamp_unit,
        columns=columns,
        items=values.items,
    )
    print(summary(manifest, values.out))


if __name__ == "__main__":
    _define_flags()
    program.run(main)
