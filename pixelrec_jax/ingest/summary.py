"""What `prepare` made, as text for its user."""

import datetime

from pixelrec_jax.data.manifest import IMAGES, Manifest
from pixelrec_jax.data.time_units import OTHER, UNITS
from pixelrec_jax.ingest import selection
from pixelrec_jax.ingest.item_info import FILE
from pixelrec_jax.system.foreign import visible

_HOW_KNOWN = {
    "integers": "as recognised",
    "floats": "as recognised, from floats",
    "dates": "from dates, in UTC where they name no zone",
}


def summary(manifest: Manifest, out: str) -> str:
    """Returns the summary of a manifest as text, one line for each figure."""
    counts, source = manifest["counts"], manifest["source"]
    lines = [
        f"Prepared {source['file']} in {out}",
        f"  users         {counts['users']:>13,}",
        f"  items         {counts['items']:>13,}",
        f"  interactions  {counts['interactions']:>13,}   "
        f"{counts['interactions'] / counts['users']:.1f} per user",
        f"  timestamps    {manifest['timestamp_unit']:>13}   {_times(manifest)}".rstrip(),
    ]
    if stored := manifest["images"]:
        files = manifest["files"].items()
        size = sum(file["bytes"] for name, file in files if name.startswith(IMAGES)) / 1e6
        kind = (
            f"resized to {stored['size']} x {stored['size']}" if stored["size"] else "as they were"
        )
        lines.append(f"  images        {stored['count']:>13,}   {kind}, {size:,.0f} MB")
        if count := len(stored["placeholders"]):
            lines.append(f"  grey images   {count:>13,}   see missing_images.csv")
    if "with_item_info" in source:
        lines.append(f"  described     {source['with_item_info']:>13,}   items, in {FILE}")
    minimum = selection.least_interactions(source["options"])
    reasons = {
        "repeats": "repeats of a user with an item",
        "missing_images": "items without an image",
        "min_interactions": f"users below {minimum} interactions",
        "sample": f"outside of --sample={source['options']['sample']}",
    }
    for why, lost in source["dropped"].items():
        if listed := ", ".join(f"{count:,} {name}" for name, count in lost.items() if count):
            lines.append(f"  dropped {listed}: {reasons[why]}")
    if count := source.get("without_interactions"):
        lines.append(f"  {count:,} items have no interactions: --items=all takes them from images")
    if source["repeats"] and source["options"]["repeats"] == "keep":
        lines.append(f"  kept {source['repeats']:,} repeats (--repeats=first drops them)")
    if source["official"]:
        lines.append(f"  {source['official']}")
    return "\n".join(map(visible, lines))


def _times(manifest: Manifest) -> str:
    """Returns the first and the last day and how the unit is known; "" if the user has given it."""
    times, unit = manifest["source"]["timestamps"], manifest["timestamp_unit"]
    if manifest["source"]["options"]["timestamp_unit"] != "auto":
        return ""
    if unit == OTHER:
        return "unit not recognised; --timestamp_unit names it"
    start = datetime.date(1970, 1, 1)
    per_day = UNITS["days"] // UNITS[unit]
    days = [start + datetime.timedelta(times[end] // per_day) for end in ("first", "last")]
    return f"since 1970, {days[0]} to {days[1]}, {_HOW_KNOWN[times['form']]}"
