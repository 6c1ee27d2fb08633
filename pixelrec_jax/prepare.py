"""Prepares a dataset for training: interactions CSV + folder of images -> one directory.

python -m pixelrec_jax.prepare --interactions=X.csv --images=DIR --out=DIR --min_interactions=5

Order of work: repeats, then users below --min_interactions, which tells the items whose images are
needed; those images are checked; if --missing=drop removes items, --min_interactions is applied
once more. No user can pass the second filter who failed the first, so this equals dropping the
items first, without decoding images that nobody needs.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import flags
from PIL import Image

from pixelrec_jax import errors
from pixelrec_jax.data import images as image_files
from pixelrec_jax.data import interactions as tables
from pixelrec_jax.errors import UserError

CHOICES = {
    "missing": ("error", "drop", "placeholder"),
    "store": ("original", "resized"),
    "repeats": ("keep", "first"),
}
# Leave-one-out: the last is the test target, the one before the validation target.
_LEAST_INTERACTIONS = 3


def prepare(
    interactions: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    min_interactions: int = 0,
    missing: str = "error",
    store: str = "original",
    image_size: int = 224,
    repeats: str = "keep",
) -> dict[str, Any]:
    """Writes the prepared dataset `out` and returns its manifest.

    Everything is built in a temporary folder beside `out` and renamed at the end, so `out` appears
    complete or not at all. Raises `UserError` for wrong input, an `out` that is not empty, and a
    full disk; images that stop the run are listed in `<out>.missing_images.csv`.
    """
    options = {
        "min_interactions": min_interactions,
        "missing": missing,
        "store": store,
        "image_size": image_size,
        "repeats": repeats,
    }
    _check_options(options)
    source, folder, out = Path(interactions), Path(images), Path(os.path.realpath(out))
    _check_free(out)
    names = image_files.find(folder)
    table = tables.read_csv(source)
    dropped: dict[str, dict[str, int]] = {}  # reason -> users, items, interactions
    repeated = tables.count_repeats(table)
    if repeated and repeats == "first":
        table = _drop(table, tables.first_of_repeats(table), "repeats", dropped)
    table = _drop_rare_users(table, min_interactions, dropped)
    files = [names.get(item_id) for item_id in table.item_ids]
    paths = [None if name is None else folder / name for name in files]

    work = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as error:
        raise UserError(f"cannot create {str(work)!r}: {error.strerror}") from None
    try:
        table, image_facts = _write_images(work, out, paths, table, options, dropped)
        tables.write_columns(table, work)
        manifest = {
            "schema_version": tables.SCHEMA_VERSION,
            "counts": table.counts,
            "source": {
                "file": source.name,
                "sha256": tables.digest(source),
                "options": options,
                "dropped": dropped,
                "repeats": repeated,
            },
            "images": image_facts,
            "files": _seal(work),
        }
        with (work / tables.MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
        _sync(work / tables.MANIFEST)
        _sync(work)
        work.rename(out)  # Replaces an empty folder; fails if it was filled in the meantime.
        _sync(out.parent)
    except (OSError, RuntimeError, pl.exceptions.PolarsError) as error:
        if message := _disk_failure(error, out):
            raise UserError(message) from error
        raise
    finally:  # Also on Ctrl-C. After the rename there is nothing left to remove.
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _check_options(options: dict[str, Any]) -> None:
    for name, known in CHOICES.items():
        if options[name] not in known:
            hint = errors.nearest(str(options[name]), known)
            raise UserError(f"--{name}={options[name]} is not an option{hint}")
    if options["min_interactions"] < 0:
        raise UserError(f"--min_interactions={options['min_interactions']} must be 0 or more")
    if not 1 <= options["image_size"] <= 4096:
        raise UserError(f"--image_size={options['image_size']} must be between 1 and 4096")


def _check_free(out: Path) -> None:
    try:
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look into --out={out}: {error.strerror}") from None
    if occupied:
        raise UserError(f"--out={out} exists and is not empty; remove it or choose another folder")


def _drop(table: tables.Table, keep: np.ndarray, why: str, dropped: dict[str, Any]) -> tables.Table:
    """Returns the rows `keep` and adds what that costs to dropped[why]."""
    kept = table.where(keep)
    before, after = table.counts, kept.counts
    account = dropped.setdefault(why, dict.fromkeys(before, 0))
    for name in before:
        account[name] += before[name] - after[name]
    return kept


def _drop_rare_users(
    table: tables.Table, minimum: int, dropped: dict[str, dict[str, int]]
) -> tables.Table:
    if minimum > 1:
        keep = tables.of_frequent_users(table, minimum)
        if not keep.any():
            raise UserError(
                f"--min_interactions={minimum} leaves no users; the most that any of the "
                f"{table.counts['users']:,} has is {np.bincount(table.users).max():,}"
            )
        table = _drop(table, keep, "min_interactions", dropped)
    short = ~tables.of_frequent_users(table, _LEAST_INTERACTIONS)
    if short.any():
        users = table.users[short]
        example, count = table.user_ids[int(users[0])], int((users == users[0]).sum())
        raise UserError(
            f"{len(np.unique(users)):,} of {table.counts['users']:,} users have fewer than "
            f"{_LEAST_INTERACTIONS} interactions (user {example!r} has {count}), too few for "
            f"leave-one-out; drop them with --min_interactions={_LEAST_INTERACTIONS}"
        )
    return table


def _write_images(
    work: Path,
    out: Path,
    paths: Sequence[Path | None],
    table: tables.Table,
    options: dict[str, Any],
    dropped: dict[str, dict[str, int]],
) -> tuple[tables.Table, dict[str, Any]]:
    """Writes the images in item order; returns the table of the items kept and the facts."""
    missing, resized = options["missing"], options["store"] == "resized"
    records = work / image_files.RECORDS
    reasons = image_files.write(records, paths, size=options["image_size"], resized=resized)
    ids = table.item_ids.to_list()
    if reasons:
        report = work / "missing_images.csv"
        image_files.report_missing(report, ids, reasons)
        if missing == "error":
            kept = out.with_name(f"{out.name}.missing_images.csv")
            report.replace(kept)
            raise UserError(
                f"{image_files.describe_missing(ids, reasons)}; all are listed in {kept}; add the "
                "images, or use --missing=drop or --missing=placeholder"
            )
    if reasons and missing == "drop":
        if len(reasons) == len(ids):
            raise UserError(f"all {len(ids):,} items are without an image; is --images right?")
        has_image = np.ones(len(ids), bool)
        has_image[list(reasons)] = False
        table = _drop(table, has_image[table.items], "missing_images", dropped)
        table = _drop_rare_users(table, options["min_interactions"], dropped)
        position = {item_id: index for index, item_id in enumerate(ids)}
        everything = work / "all.array_record"
        records.rename(everything)
        image_files.copy(everything, records, [position[item_id] for item_id in table.item_ids])
        everything.unlink()
    return table, {
        "store": options["store"],
        "size": options["image_size"] if resized else None,
        "count": table.counts["items"],
        "placeholders": [ids[i] for i in sorted(reasons)] if missing == "placeholder" else [],
    }


def _seal(work: Path) -> dict[str, dict[str, Any]]:
    """Forces all files to the disk and returns their hashes and sizes."""
    files = {}
    for path in sorted(work.iterdir()):
        _sync(path)
        files[path.name] = {"sha256": tables.digest(path), "bytes": path.stat().st_size}
    return files


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_failure(error: Exception, out: Path) -> str | None:
    """Says in one line what the disk refused; None if the error is a bug of ours."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):  # ArrayRecord and polars have no errno.
        return f"no space left on the disk of {out.parent}; --out={out} was not created"
    return f"cannot write {str(out)!r}: {error}" if isinstance(error, OSError) else None


def _summary(manifest: dict[str, Any], out: str) -> str:
    counts, source = manifest["counts"], manifest["source"]
    stored, size = manifest["images"], manifest["files"][image_files.RECORDS]["bytes"] / 1e6
    kind = f"resized to {stored['size']} x {stored['size']}" if stored["size"] else "as they were"
    lines = [
        f"Prepared {source['file']} in {out}",
        f"  users         {counts['users']:>13,}",
        f"  items         {counts['items']:>13,}",
        f"  interactions  {counts['interactions']:>13,}   "
        f"{counts['interactions'] / counts['users']:.1f} per user",
        f"  images        {stored['count']:>13,}   {kind}, {size:,.0f} MB",
    ]
    if count := len(stored["placeholders"]):
        lines.append(f"  grey images   {count:>13,}   see missing_images.csv")
    reasons = {
        "repeats": "repeats of a user with an item",
        "missing_images": "items without an image",
        "min_interactions": f"users below {source['options']['min_interactions']} interactions",
    }
    for why, lost in source["dropped"].items():
        if parts := ", ".join(f"{count:,} {name}" for name, count in lost.items() if count):
            lines.append(f"  dropped {parts}: {reasons[why]}")
    if source["repeats"] and source["options"]["repeats"] == "keep":
        lines.append(f"  kept {source['repeats']:,} repeats (--repeats=first drops them)")
    return "\n".join(lines)


def _define_flags() -> None:
    # Not at import: other programs import `prepare` and have flags of the same names.
    flags.DEFINE_string("interactions", None, "CSV: item_id,user_id,timestamp", required=True)
    flags.DEFINE_string("images", None, "folder of <item_id>.jpg", required=True)
    flags.DEFINE_string("out", None, "folder to create", required=True)
    flags.DEFINE_integer("min_interactions", 0, "drop users with fewer interactions")
    flags.DEFINE_enum("missing", "error", CHOICES["missing"], "for items without a usable image")
    flags.DEFINE_enum("store", "original", CHOICES["store"], "files as they are, or raw pixels")
    flags.DEFINE_integer("image_size", 224, "pixels per side for --store=resized")
    flags.DEFINE_enum("repeats", "keep", CHOICES["repeats"], "a user's repeats of an item")


def main(_: Sequence[str]) -> None:
    """Prepares the dataset that the flags name and prints what it holds."""
    values = flags.FLAGS
    # An oversized image is reported as undecodable, with its name; Pillow's warning has no name.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    manifest = prepare(
        values.interactions,
        values.images,
        values.out,
        min_interactions=values.min_interactions,
        missing=values.missing,
        store=values.store,
        image_size=values.image_size,
        repeats=values.repeats,
    )
    print(_summary(manifest, values.out))


if __name__ == "__main__":
    _define_flags()
    errors.run(main)
