"""Fetches the images of a list of URLs, as <item_id>.jpg, .png or .webp.

This is the paper's "special tool to permanently access and download related image data" (section
2.4). The URLs may come from strangers: `addresses` decides which connections are allowed.
"""

import asyncio
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import polars as pl
from PIL import Image

from pixelrec_jax.data import images
from pixelrec_jax.ingest import image_warnings
from pixelrec_jax.ingest.addresses import RefusedError
from pixelrec_jax.ingest.sources.source import SUFFIXES
from pixelrec_jax.ingest.table_file import as_text, find_columns, one_line_errors
from pixelrec_jax.ingest.web import Fetcher
from pixelrec_jax.system import files
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.temporary import remove_leftovers

COLUMNS = ("item_id", "url")
# A valid file name on every system, and never a path to another folder.
ITEM_ID = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}"
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def read_urls(path: Path, columns: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Returns the columns item_id and url of a table, as text; empty URLs stay.

    Args:
      path: a CSV, Parquet or Arrow file.
      columns: {our name: name in the file} where they differ; positions in a CSV without a header.

    Raises:
      UserError: the file or a row of it cannot be read, an id is not a file name or occurs twice.
    """
    with one_line_errors(path, "list of URLs"):
        file, names = find_columns(path, COLUMNS, columns or {})
        scan = file.scan()
        item_id, url = as_text(scan, names, file.name)
        frame = scan.select(item_id, url).fill_null("").collect()
        rows = frame.filter(pl.any_horizontal(pl.all() != "")).height
        file.check(rows, list(names.values()))
    ids = frame["item_id"]
    bad = ids.filter(~ids.str.contains(f"^(?:{ITEM_ID})$") | ids.str.contains("..", literal=True))
    if len(bad):
        raise UserError(
            f"{path} has {len(bad):,} item ids that cannot be file names, such as {bad[0]!r}; use "
            "letters, digits, '_', '-' and '.', without '..' and without '.' at the beginning"
        )
    if len(twice := ids.filter(ids.is_duplicated())):
        raise UserError(f"{path} has item {twice[0]!r} more than once; keep one URL of an item")
    return frame


def fetch(
    urls: str | Path,
    out: str | Path,
    fetcher: Fetcher,
    columns: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Fetches the images that are not in the folder `out`; returns how many it fetched and found.

    Every file is checked by decoding it and appears complete or not at all. Failures are listed in
    `<out>.failures.csv` (item_id, url, reason), which the next run replaces. For `columns` see
    `read_urls`.

    Raises:
      UserError: wrong input, or images that could not be fetched.
    """
    out = Path(os.path.realpath(out))
    frame = read_urls(Path(urls), columns)
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        names = [os.path.splitext(name) for name in os.listdir(out)]
    except OSError as error:
        raise UserError(
            f"cannot write to --out={out}: {error.strerror}; give another folder"
        ) from None
    there = {stem for stem, suffix in names if suffix.lower() in SUFFIXES}
    todo = frame.filter(~frame["item_id"].is_in(list(there)))
    failures: dict[int, str] = {}  # reason by row of `todo`
    report = out.with_name(f"{out.name}.failures.csv")
    try:
        try:
            asyncio.run(_fetch_all(todo, out, fetcher, failures))
        finally:  # also after Ctrl-C, with the failures so far
            _write_report(report, todo, failures)
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or out}: {error.strerror}; start again to continue"
        ) from None
    if failures:
        first = min(failures)
        item_id, url = todo.row(first)
        raise UserError(
            f"{len(failures):,} of {len(frame):,} images could not be fetched, such as that of "
            f"{item_id!r} from {url[:200]!r}: {failures[first]}; all are listed in {report}; start "
            "again to try them once more"
        )
    return {"fetched": len(todo), "there": len(frame) - len(todo)}


async def _fetch_all(
    todo: pl.DataFrame, out: Path, fetcher: Fetcher, failures: dict[int, str]
) -> None:
    rows = enumerate(todo.iter_rows())  # shared: each worker takes the next row

    async def work(threads: Executor, advance: Callable[[int], None]) -> None:
        for row, (item_id, url) in rows:
            try:
                body = await fetcher.get(url)
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(threads, _save, body, out, item_id)
            except (RefusedError, ValueError) as error:
                failures[row] = str(error)
            advance(1)

    # One thread for each core bounds the memory of decoded images.
    with (
        image_warnings.collected(),
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress_bar("images", len(todo)) as advance,
    ):
        async with fetcher:
            workers = [
                asyncio.create_task(work(threads, advance))
                for _ in range(fetcher.limits.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


def _save(body: bytes, out: Path, item_id: str) -> None:
    """Writes an image with the suffix of its real format; raises `ValueError` if it is not one."""
    image_warnings.set_item(item_id)
    images.decode(body, None)  # the whole image: a server's headers may be wrong
    with Image.open(io.BytesIO(body), formats=images.FORMATS) as opened:
        assert opened.format is not None, "an opened file has a format"
        suffix = _SUFFIXES[opened.format]
    with files.replaced_file(out / f"{item_id}{suffix}") as temporary:
        temporary.write_bytes(body)


def _write_report(report: Path, todo: pl.DataFrame, failures: dict[int, str]) -> None:
    if not failures:
        report.unlink(missing_ok=True)
        return
    rows = ((*todo.row(row), failures[row]) for row in sorted(failures))
    files.write_csv(report, (*COLUMNS, "reason"), rows)
