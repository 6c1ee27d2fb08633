"""The items of PixelRec as TFDS examples: an encoded image and attributes of each item."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from absl import logging
from etils import epath

from pixelrec_jax.data import images
from pixelrec_jax.ingest.csv_file import open_csv
from pixelrec_jax.ingest.item_info import COUNTS, TEXTS
from pixelrec_jax.ingest.sources.source import SUFFIXES, by_item_id
from pixelrec_jax.ingest.tfds import pieces
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import read_bytes
from pixelrec_jax.system.foreign import visible

UNKNOWN = -1  # stands for an unknown number; an unknown text is empty
MISSING = ("error", "drop")


def rows(
    folder: str, item_info: str | None, interactions: str | None
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yields (item_id and attributes, name of the image file or None) of every item.

    The items are those of the interactions if given, otherwise those of the item information if
    given, otherwise those with an image.

    Raises:
      UserError: a file cannot be read, an item has two rows of information, or a number is not one.
    """
    files = _find(epath.Path(folder))
    info = None if item_info is None else _read_info(item_info)
    if interactions is not None:
        of_pieces = (
            pieces.read(start, path=interactions)["item_id"].unique()
            for start in pieces.starts(interactions)
        )
        known = set().union(*of_pieces)
    else:
        known = set(files) if info is None else set(info["item_id"])
    ids = pl.DataFrame({"item_id": sorted(known)})
    if info is not None:
        ids = ids.join(info, on="item_id", how="left", maintain_order="left")
    unknown = [
        (pl.col(name).fill_null(value) if name in ids.columns else pl.lit(value)).alias(name)
        for names, value in ((COUNTS, UNKNOWN), (TEXTS, ""))
        for name in names
    ]
    for row in ids.with_columns(unknown).iter_rows(named=True):
        yield row, files.get(row["item_id"])


def examples(
    row: dict[str, Any], file: str | None, *, folder: str, missing: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and example of one item; nothing if missing="drop" and the image is unusable.

    The example holds the image file as it is; it was decoded once as a check. Raises `UserError`
    with the reason if missing="error".
    """
    item_id = row["item_id"]
    try:
        if file is None:
            raise ValueError("missing")
        if storage.is_remote(folder):
            image = (epath.Path(folder) / file).read_bytes()
        else:
            image = read_bytes(Path(folder, file))
        images.decode(image, None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if missing == "error":
            raise UserError(
                f"item {item_id!r} has no usable image in {folder!r}: {reason}; add it, or drop "
                "such items with --missing=drop"
            ) from None
        logging.warning("item %r is dropped, its image is unusable: %s", item_id, visible(reason))
        return
    yield item_id, {**row, "image": image}


def _find(folder: epath.Path) -> dict[str, str]:
    """Returns item id -> file name, for a folder or a bucket."""
    found = by_item_id({path.name: path.name for path in folder.iterdir()})
    if not found:
        raise UserError(
            f"image folder {str(folder)!r} holds no images; name them <item_id> with "
            f"{', '.join(SUFFIXES)}"
        )
    return found


def _read_info(path: str) -> pl.DataFrame:
    """Returns item_id and the known attributes in the file; numbers are int64."""
    try:
        file = open_csv(epath.Path(path).read_bytes(), repr(path))
        info = file.scan().collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"cannot read {path!r}: {str(error).splitlines()[0]}; give a CSV file"
        ) from None
    if "item_id" not in info.columns:
        raise UserError(
            f"{path!r} has no column item_id; it has {', '.join(info.columns)}; add the column"
        )
    info = info.select("item_id", *(n for n in (*COUNTS, *TEXTS) if n in info.columns))
    info = info.filter(pl.col("item_id").is_not_null())  # blank lines
    file.check(len(info), ("item_id",))
    twice = info.filter(pl.col("item_id").is_duplicated())
    if len(twice):
        raise UserError(f"{path!r} describes item {twice['item_id'][0]!r} twice; keep one line")
    for name in set(COUNTS) & set(info.columns):
        number = info[name].cast(pl.Int64, strict=False)
        wrong = info.filter(number.is_null() & info[name].is_not_null())
        if len(wrong):
            raise UserError(
                f"{path!r}: {name} of item {wrong['item_id'][0]!r} is {wrong[name][0]!r}, "
                "expected an integer or nothing"
            )
        info = info.with_columns(number)
    return info
