"""Item information (views, title, tag, ...): a table -> Arrow, where row i is of item i + 1."""

from pathlib import Path

import polars as pl

from pixelrec_jax.data.item_info import FILE
from pixelrec_jax.ingest import table_file
from pixelrec_jax.ingest.column_names import find, plain_name
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


def read_item_info(path: Path, id_column: str = "item_id") -> pl.LazyFrame:
    """Returns the rows of an item information file as a lazy frame, after checks.

    The column of ids is needed and all others are kept; an empty field is null. Columns of whole
    numbers are Int64, except `TEXTS`; all others are String.

    Args:
      path: a CSV, Parquet or Arrow file.
      id_column: the name of item_id in the file; if there is none of this name, it is "item_id".

    Raises:
      UserError: the file is missing, empty, malformed or without ids, a row cannot be read, or an
        id is empty or occurs twice.
    """
    with table_file.one_line_errors(path, "item information"):
        return _checked(path, id_column)


def _checked(path: Path, id_column: str) -> pl.LazyFrame:
    file = table_file.open_table(path, ["item_id", id_column])
    columns = {plain_name(name): name for name in file.columns()}
    given = {"item_id": id_column} if id_column in columns else {}
    names = find(file.columns(), ["item_id"], given, file.name)
    others = {ours: theirs for ours, theirs in columns.items() if theirs != names["item_id"]}
    if "item_id" in others:
        raise UserError(
            f"{file.name} has both {id_column!r}, which --columns names for ids, and 'item_id'; "
            "rename one"
        )
    scan = file.scan()
    for name, dtype in scan.collect_schema().items():
        if dtype.is_nested():
            raise UserError(
                f"{file.name} has lists or structures in {name[:100]!r}; write text or numbers, or "
                "leave the column out"
            )
    scan = scan.select(
        *table_file.as_text(scan, names, file.name),
        *(pl.col(theirs).cast(pl.String).alias(ours) for ours, theirs in others.items()),
    )
    scan = scan.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    scan = scan.with_columns(pl.all().replace("", None))
    whole = [pl.col(name).str.contains(_INTEGER).all() for name in others if name not in TEXTS]
    item_id = pl.col("item_id")
    counts = pl.struct(all=item_id.len(), nameless=item_id.null_count()).alias("item_id")
    facts = scan.select(counts, *whole).collect(engine="streaming").to_dicts()[0]
    rows = facts.pop("item_id")
    if count := rows["nameless"]:
        raise UserError(f"{str(path)!r} has {count:,} rows without an item_id; every row needs one")
    file.check(rows["all"], list(columns.values()))
    repeated = scan.group_by("item_id").len().filter(pl.col("len") > 1).sort("item_id")
    if found := repeated.collect(engine="streaming").to_dicts():
        raise UserError(
            f"{str(path)!r} has {len(found):,} item_ids in more than one row, such as "
            f"{found[0]['item_id']!r} in {found[0]['len']:,}; keep one row of each"
        )
    integers = [name for name, is_whole in facts.items() if is_whole]
    return scan.with_columns(pl.col(integers).str.strip_suffix(".0").cast(pl.Int64))


def write_item_info(rows: pl.LazyFrame, item_ids: pl.Series, directory: Path) -> int:
    """Writes `FILE` into a prepared dataset and returns how many of its items have a row.

    Args:
      rows: the result of `read_item_info`; rows of other items are left out.
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
