"""Item information (views, title, tag, ...): CSV -> Arrow, where row i belongs to item i + 1."""

from pathlib import Path

import polars as pl

from pixelrec_jax.data.item_info import FILE
from pixelrec_jax.ingest import csv_file
from pixelrec_jax.system.errors import UserError

# PixelRec's columns (section 2.1) except item_id.
COUNTS = (
    "view_number",
    "comment_number",
    "thumbup_number",
    "share_number",
    "coin_number",
    "favorite_number",
    "barrage_number",
)


TEXTS = ("title", "tag", "description")


# Also matches 12.0: pandas writes whole numbers so if a column has gaps. Leading zeros do not
# match, as they belong to codes. 18 digits always fit into 64 bits.
_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})(?:\.0)?$"


def read_csv(path: Path) -> pl.LazyFrame:
    """Returns the rows of an item information file as a lazy frame, after checks.

    The column item_id is needed and all others are kept; an empty field is null. Columns of whole
    numbers are Int64, except `TEXTS`; all others are String.

    Raises:
      UserError: the file is missing, empty, malformed or without the column item_id, a row cannot
        be read, or an item_id is empty or occurs twice.
    """
    with csv_file.one_line_errors(path, "item information"):
        return _checked(path)


def _checked(path: Path) -> pl.LazyFrame:
    file = csv_file.open_csv(path)
    scan = file.scan()
    header = scan.collect_schema().names()
    if "item_id" not in header:
        raise UserError(
            f"{str(path)!r} has no column item_id; it has {', '.join(header)}; give a "
            "comma-separated file with a header line"
        )
    scan = scan.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    scan = scan.with_columns(pl.all().replace("", None))
    others = [name for name in header if name not in ("item_id", *TEXTS)]
    whole = [pl.col(name).str.contains(_INTEGER).all() for name in others]
    item_id = pl.col("item_id")
    counts = pl.struct(all=item_id.len(), nameless=item_id.null_count()).alias("item_id")
    facts = scan.select(counts, *whole).collect(engine="streaming").to_dicts()[0]
    rows = facts.pop("item_id")
    if count := rows["nameless"]:
        raise UserError(f"{str(path)!r} has {count:,} rows without an item_id; every row needs one")
    file.check(rows["all"], header)
    repeated = scan.group_by("item_id").len().filter(pl.col("len") > 1).sort("item_id")
    if found := repeated.collect(engine="streaming").to_dicts():
        raise UserError(
            f"{str(path)!r} has {len(found):,} item_ids in more than one row, such as "
            f"{found[0]['item_id']!r} in {found[0]['len']:,}; keep one row of each"
        )
    integers = [name for name, is_whole in facts.items() if is_whole]
    return scan.with_columns(pl.col(integers).str.strip_suffix(".0").cast(pl.Int64))


def write(rows: pl.LazyFrame, item_ids: pl.Series, directory: Path) -> int:
    """Writes `FILE` into a prepared dataset and returns how many of its items have a row.

    Args:
      rows: the result of `read_csv`; rows of other items are left out.
      item_ids: the item ids of the dataset; entry i is item i + 1. Items without a row get nulls.
      directory: the folder of the dataset.

    Raises:
      UserError: no item has a row.
    """
    known = rows.select("item_id").collect(engine="streaming")["item_id"]
    found = int(item_ids.is_in(known.implode()).sum())
    if not found:
        raise UserError(
            f"none of the {len(item_ids):,} items has item information: interactions name items "
            f"like {item_ids[0]!r}, --item_info like {next(iter(known), '')!r}; give a file with "
            "the same ids"
        )
    items = pl.LazyFrame({"item_id": item_ids})
    aligned = items.join(rows, on="item_id", how="left", maintain_order="left")
    aligned.sink_ipc(directory / FILE)
    return found
