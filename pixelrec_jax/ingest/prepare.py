"""Makes a prepared dataset: interactions + images -> one directory (programs/prepare.py)."""

import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from pixelrec_jax.data.interactions import RECORD_NUMBERS
from pixelrec_jax.data.manifest import (
    IMAGES,
    MANIFEST,
    SCHEMA_VERSION,
    Counts,
    File,
    Images,
    Manifest,
    Source,
)
from pixelrec_jax.ingest import image_shards, missing_images, official, selection
from pixelrec_jax.ingest.columns import Table, count_repeats, write_columns
from pixelrec_jax.ingest.interactions_file import CONTROL, read_interactions
from pixelrec_jax.ingest.item_info import read_item_info, write_item_info
from pixelrec_jax.ingest.options import CHOICES, IMAGE_SIZE
from pixelrec_jax.ingest.sources import ImageSource, open_source
from pixelrec_jax.ingest.sources.matching import MISSING, MatchedImages
from pixelrec_jax.system import errors
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import LOCK, digest, sync, work_folder


def prepare(
    interactions: str | Path,
    images: str | Path | None,
    out: str | Path,
    *,
    item_info: str | Path | None = None,
    min_interactions: int = 0,
    sample: str = "",
    seed: int = 0,
    missing: str = "error",
    store: str = "original",
    image_size: int | None = None,
    repeats: str = "keep",
    timestamp_unit: str = "auto",
    columns: Mapping[str, str] | None = None,
    items: str = "interactions",
) -> Manifest:
    """Writes the prepared dataset `out` and returns its manifest.

    Everything is built in `<out>.partial` and renamed at the end, so that `out` appears complete or
    not at all. An interrupted run leaves its finished images there for the next run.

    Args:
      interactions: CSV, Parquet or Arrow table of item_id, user_id and timestamp.
      images: folder, tar, zip, LMDB or TFDS dataset; None makes a dataset without images.
      out: folder to create.
      item_info: such a table of item_id and any attributes of items.
      min_interactions ... timestamp_unit: as the flags of `pixelrec prepare`.
      columns: {our name: name in the file} of columns of the interactions with other names;
        positions from 1 in a CSV without a header. The name of item_id also holds for `item_info`.
      items: "all" adds the images that no interaction names as items.

    Raises:
      UserError: wrong input, an `out` that is not empty, or a full disk. Images that stop the run
        are listed in `<out>.missing_images.csv`.
    """
    if image_size is None and store == "resized":
        image_size = IMAGE_SIZE
    names = dict(columns or {})
    options = {
        "min_interactions": min_interactions,
        "sample": sample,
        "seed": seed,
        "missing": missing,
        "store": store,
        "image_size": image_size,
        "repeats": repeats,
        "timestamp_unit": timestamp_unit,
        "items": items,
        "columns": ",".join(f"{ours}={theirs}" for ours, theirs in names.items()),
    }
    _check_options(options)
    if items == "all" and images is None:
        raise UserError("--items=all takes items from their images; name them with --images")
    source, out = Path(interactions), Path(os.path.realpath(out))
    _check_free(out)
    info = (
        None
        if item_info is None
        else read_item_info(Path(item_info), names.get("item_id", "item_id"))
    )
    with ExitStack() as stack:
        pictures = None
        if images is not None:
            pictures = stack.enter_context(closing(open_source(Path(images))))
        work = stack.enter_context(_partial(out))
        table, times = read_interactions(source, names, unit=timestamp_unit)
        sha256 = digest(source)
        dropped: selection.Dropped = {}
        facts: Source = {
            "file": source.name,
            "sha256": sha256,
            "official": official.recognise(source.name, table.counts, sha256),
            "timestamps": {
                "form": times.form,
                "first": int(table.timestamps.min()),
                "last": int(table.timestamps.max()),
            },
            "repeats": count_repeats(table),
            "options": options,
            "dropped": dropped,
        }
        table = selection.select(table, options, dropped)
        stored = None
        if pictures is None:
            shutil.rmtree(work / IMAGES, ignore_errors=True)
        else:
            table, stored = _write_images(work, out, pictures, table, options, dropped)
        if items == "all":
            with_some = int(np.count_nonzero(np.bincount(table.items)))
            facts["without_interactions"] = len(table.item_ids) - with_some
        write_columns(table, work)
        if info is not None:
            facts["with_item_info"] = write_item_info(info, table.item_ids, work)
        manifest: Manifest = {
            "schema_version": SCHEMA_VERSION,
            "counts": cast(Counts, table.counts),
            "timestamp_unit": times.unit,
            "source": facts,
            "images": stored,
            "files": _seal(work),
        }
        with (work / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
        sync(work / MANIFEST)
        sync(work)
        _publish(work, out)
    return manifest


@contextmanager
def _partial(out: Path) -> Generator[Path]:
    """Yields the folder that becomes `out`; after an error it stays only if it has images."""
    with work_folder(out, keep=IMAGES) as work:
        try:
            yield work
        except (OSError, RuntimeError, pl.exceptions.PolarsError) as error:
            if message := _disk_failure(error, out, work):
                raise UserError(message) from error
            raise
        finally:  # also after Ctrl-C; after the rename, nothing is left to remove
            if not image_shards.sidecars(work / IMAGES):
                shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, out: Path) -> None:
    """Renames the finished folder and removes files that only an unfinished one needs."""
    try:
        work.rename(out)  # this replaces an empty folder
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(
                f"--out={out} was filled by something else in the meantime; remove it and start "
                "again, which uses the finished images"
            ) from None
        raise
    for path in (out / LOCK, *image_shards.sidecars(out / IMAGES), missing_images.of_failure(out)):
        path.unlink(missing_ok=True)
    sync(out.parent)


def _check_options(options: dict[str, Any]) -> None:
    for name, known in CHOICES.items():
        if options[name] not in known:
            hint = errors.nearest(str(options[name]), known)
            raise UserError(f"--{name}={options[name]} is not an option{hint}")
    if options["min_interactions"] < 0:
        raise UserError(f"--min_interactions={options['min_interactions']}; give 0 or more")
    selection.parse(options["sample"])
    if options["seed"] < 0:
        raise UserError(f"--seed={options['seed']}; give 0 or more")
    resized, size = options["store"] == "resized", options["image_size"]
    if size is not None and not resized:
        raise UserError(
            f"--image_size={size} needs --store=resized; stored files get their size in training, "
            "by --config.item.image_size"
        )
    if resized and not 1 <= size <= 4096:
        raise UserError(f"--image_size={size}; give 1 to 4096")


def _check_free(out: Path) -> None:
    try:
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into --out={out}: {error.strerror}; give another") from None
    if occupied:
        raise UserError(f"--out={out} exists and is not empty; remove it or choose another folder")


def _write_images(
    work: Path,
    out: Path,
    source: ImageSource,
    table: Table,
    options: dict[str, Any],
    dropped: selection.Dropped,
) -> tuple[Table, Images]:
    """Writes the images of all items; returns the table of the kept items, and facts on images."""
    missing, size = options["missing"], options["image_size"]
    ids = table.item_ids.to_list()
    matched = MatchedImages(source, ids, every=options["items"] == "all")
    ids += _checked_names(matched.unnamed)
    reasons = image_shards.write_shards(work / IMAGES, matched, ids, size=size)
    reasons = {
        index: matched.missing(ids[index]) if why == MISSING else why
        for index, why in reasons.items()
    }
    records = np.arange(len(ids), dtype=np.int32)
    if reasons:
        report = work / "missing_images.csv"
        if missing == "error":
            report = missing_images.of_failure(out)
        missing_images.write(report, ids, reasons)
        if missing == "error":
            raise UserError(
                f"{missing_images.describe(ids, reasons)}; all are listed in {report}; add the "
                "images, or use --missing=drop or --missing=placeholder; complete image shards are "
                "not made again"
            )
        if len(reasons) == len(ids):
            raise UserError(f"all {len(ids):,} items are without an image; give their images")
        records[list(reasons)] = -1
    kept = np.ones(len(ids), bool)
    if reasons and missing == "drop":
        kept = records >= 0
        table = selection.drop(table, kept[table.items], "missing_images", dropped)
        table = selection.drop_rare_users(table, selection.least_interactions(options), dropped)
    catalog = table.item_ids.to_list()
    if options["items"] == "all":
        named = set(catalog)
        catalog += [ids[i] for i in np.flatnonzero(kept) if ids[i] not in named]
        table = dataclasses.replace(table, item_ids=pl.Series(catalog, dtype=pl.String))
    if catalog != ids:
        record_of = dict(zip(ids, records, strict=True))
        records = np.array([record_of[item_id] for item_id in catalog], np.int32)
    np.save(work / RECORD_NUMBERS, records)
    return table, {
        "store": options["store"],
        "size": size,
        "count": len(records),
        "placeholders": [ids[i] for i in sorted(reasons)] if missing == "placeholder" else [],
    }


def _checked_names(names: Sequence[str]) -> Sequence[str]:
    """Returns names of images as item ids; raises `UserError` for one that cannot be an id."""
    for name in names:
        if not name or re.search(f"{CONTROL}|[\ud800-\udfff]", name):
            raise UserError(
                f"--items=all: the image {name[:100]!r} cannot be named so as an item; rename it"
            )
    return names


def _seal(work: Path) -> dict[str, File]:
    """Forces all files to the disk; returns their hashes and sizes by name."""
    files: dict[str, File] = {}
    for path in sorted(work.iterdir()):
        if path.is_dir():
            for name, file in image_shards.digests(path).items():
                files[f"{path.name}/{name}"] = file
        elif path.name != LOCK:
            files[path.name] = {"sha256": digest(path), "bytes": path.stat().st_size}
        sync(path)
    return files


def _disk_failure(error: Exception, out: Path, work: Path) -> str | None:
    """Returns one line on a failure of the disk; None if the error is a bug of this program."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):  # ArrayRecord and polars give no errno
        kept = f"; the next run uses the images in {work}"
        return (
            f"no space left on the disk of {out.parent}; --out={out} was not created; free disk "
            f"space and start again{kept if image_shards.sidecars(work / IMAGES) else ''}"
        )
    message = f"cannot write {str(out)!r}: {error}; give another --out"
    return message if isinstance(error, OSError) else None
