"""A few users of a run: their history, their top list and their test item."""

from pathlib import Path

import numpy as np
import polars as pl
from rich import box
from rich.table import Table

from pixelrec_jax.data import item_info
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.queries import ranking_queries
from pixelrec_jax.data.split import build_split
from pixelrec_jax.runs.run_folder import read_config
from pixelrec_jax.system import storage
from pixelrec_jax.system.console import render
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.foreign import clean_line
from pixelrec_jax.system.frames import POLARS_ERRORS, scan_parquet

_HISTORY = 8  # latest items shown
_ID = 60  # characters shown of an id
_TEXTS = {"title": 60, "tag": 20}  # item information shown, with widths in characters


def show(workdir: Path, *, users: int, seed: int) -> str:
    """Returns text tables of `users` random users of a run; `seed` decides which.

    A table lists the latest items before the test item, the top list with a mark at a hit,
    and the test item; with titles and tags if the dataset has them.

    Raises:
      UserError: the workdir does not hold top lists, or its dataset is gone or another one.
    """
    settings = read_config(workdir).dataset
    top = _top_lists(workdir, users=users, seed=seed)
    dataset = load_interactions(settings.path)
    split = build_split(dataset, settings.split)
    names = top["user_id"].unique(maintain_order=True)
    user_ids, item_ids = dataset.user_ids(), dataset.item_ids()
    indices = [user_ids.index_of(name) for name in names]
    if None in indices:
        raise UserError(
            f"{dataset.directory} is not the dataset of the run in {workdir}; restore that dataset"
        )
    queries = ranking_queries(split, np.array(indices) + 1, "test", history_length=_HISTORY)
    history = [item_ids.gather(items[items > 0] - 1) for items in np.asarray(queries.history)]
    target = item_ids.gather(np.asarray(queries.target) - 1)

    info = item_info.load(dataset)
    shown = [] if info is None else [name for name in _TEXTS if name in info.columns]
    texts = {}
    if info is not None and shown:
        listed = pl.concat([*history, target, top["item_id"]]).unique()
        info = info.filter(pl.col("item_id").is_in(listed.implode()))
        texts = info.select("item_id", *shown).rows_by_key("item_id", unique=True)

    grids = []
    for name, before, chosen in zip(names, history, target, strict=True):
        user = clean_line(name, width=_ID)
        grid = Table(title=f"user {user}", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("", "item", "score", *shown):
            grid.add_column(column, justify="right" if column == "score" else "left")

        def add(label: str, item: str, score: str = "", grid: Table = grid) -> None:
            found = zip(shown, texts.get(item, ()), strict=False)
            about = [clean_line(text, width=_TEXTS[column]) for column, text in found]
            grid.add_row(label, clean_line(item, width=_ID), score, *about)

        for item in before:
            add("history", item)
        grid.add_section()
        for row in top.filter(pl.col("user_id") == name).iter_rows(named=True):
            hit = "  hit" if row["item_id"] == chosen else ""
            add(f"top {row['rank']}{hit}", row["item_id"], f"{row['score']:.3f}")
        grid.add_section()
        add("chosen", chosen)
        grids.append(grid)
    return render(grids)


def _top_lists(workdir: Path, *, users: int, seed: int) -> pl.DataFrame:
    """Returns the rows of test_top_k.parquet of random users, in the order of the file."""
    path = workdir / "test_top_k.parquet"
    try:
        scan = scan_parquet(storage.local_file(path)).select(
            pl.col("user_id", "item_id").cast(pl.String),
            pl.col("rank").cast(pl.Int64),
            pl.col("score").cast(pl.Float64),
        )
        known = scan.filter(pl.col("rank") == 1).select("user_id").collect()["user_id"]
        drawn = np.random.default_rng(seed).permutation(len(known))[:users]
        chosen = known.gather(np.sort(drawn)).implode()
        top = scan.filter(pl.col("user_id").is_in(chosen)).collect()
        if sum(top.null_count().row(0)):
            raise OSError("values are missing")
        return top
    except (OSError, *POLARS_ERRORS) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); write it with pixelrec train "
            f"--mode=evaluate --workdir={workdir}"
        ) from None
