"""Items without a usable image: the list of them, and one line about them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from pixelrec_jax.files import replaced_file


def write(path: Path, ids: Sequence[str], reasons: dict[int, str]) -> None:
    """Writes a CSV of item_id, reason for {place in ids: reason}."""
    with replaced_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("item_id", "reason"))
        rows.writerows((ids[index], reasons[index]) for index in sorted(reasons))


def describe(ids: Sequence[str], reasons: dict[int, str]) -> str:
    """Returns the counts and the first examples."""
    absent = sum(reason == "missing" for reason in reasons.values())
    first = "; ".join(f"{ids[index]}: {reasons[index]}" for index in sorted(reasons)[:3])
    return (
        f"{len(reasons):,} of {len(ids):,} items have no usable image ({absent:,} missing, "
        f"{len(reasons) - absent:,} undecodable): {first}{'; ...' if len(reasons) > 3 else ''}"
    )
