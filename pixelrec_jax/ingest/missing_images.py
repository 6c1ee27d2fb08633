"""Items without a usable image: a CSV file and one line about them."""

from collections.abc import Sequence
from pathlib import Path

from pixelrec_jax.ingest.sources.matching import MISSING
from pixelrec_jax.system.files import write_csv
from pixelrec_jax.system.foreign import clean_line


def of_failure(out: Path) -> Path:
    """Returns the path of the list for a preparation that missing images have stopped."""
    return out.with_name(f"{out.name}.missing_images.csv")


def write(path: Path, ids: Sequence[str], reasons: dict[int, str]) -> None:
    """Writes a CSV of item_id and reason; `reasons` are by index in `ids`."""
    rows = ((ids[index], reasons[index]) for index in sorted(reasons))
    write_csv(path, ("item_id", "reason"), rows)


def describe(ids: Sequence[str], reasons: dict[int, str]) -> str:
    """Returns one line with the counts and the first examples."""
    absent = sum(reason.startswith(MISSING) for reason in reasons.values())
    examples = [
        f"{clean_line(ids[index], width=60)}: {clean_line(reasons[index], width=160)}"
        for index in sorted(reasons)[:3]
    ]
    more = "; ..." if len(reasons) > len(examples) else ""
    return (
        f"{len(reasons):,} of {len(ids):,} items have no usable image ({absent:,} missing, "
        f"{len(reasons) - absent:,} undecodable): {'; '.join(examples)}{more}"
    )
