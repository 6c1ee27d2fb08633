"""The official interaction files of PixelRec, recognised by their counts and hashes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Official:
    """The counts of an official interactions file, and its SHA-256 if known."""

    counts: Mapping[str, int]
    sha256: str | None = None


def _counts(users: int, items: int, interactions: int) -> Mapping[str, int]:
    return MappingProxyType({"users": users, "items": items, "interactions": interactions})


# Counts: PixelRec section 2.3, Tables 2 and 3; PixelRec50K is only on the authors' page. They
# publish no hashes; that of Pixel200K was reported by others who used the file.
OFFICIAL = MappingProxyType(
    {
        "PixelRec50K": Official(_counts(50_000, 82_865, 989_494)),
        "Pixel200K": Official(
            _counts(200_000, 96_282, 3_965_656),
            "77daac2c79079a7b389ca8c0f697b63a92ec981f1c61a5e98e94790fee399ac7",
        ),
        "Pixel1M": Official(_counts(1_001_822, 100_541, 19_886_579)),
        "Pixel8M": Official(_counts(8_886_078, 407_082, 158_488_652)),
        "PixelRec": Official(_counts(29_845_039, 408_374, 195_755_320)),
    }
)
# Matches pixel200k.csv, Pixel200K_interaction.csv, and "Pixel200K (1).csv" of a second download.
_NAMED = re.compile(r"(\w+?)([_-]interactions?)?( ?\(\d+\))?(\.\w+)*", re.IGNORECASE)


def recognise(file_name: str, counts: Mapping[str, int], sha256: str) -> str | None:
    """Returns one line on whether an interactions file is an official one; None for other files.

    Args:
      file_name: the name without folders; it says which file is meant if the counts do not.
      counts: users, items and interactions of the file, before any filter.
      sha256: the hash of the file, in hexadecimal.
    """
    for name, official in OFFICIAL.items():
        if dict(counts) != dict(official.counts):
            continue
        if official.sha256 is None:
            return f"official {name}: its counts agree; its hash is not known (SHA-256 {sha256})"
        if sha256 == official.sha256:
            return f"official {name}: its counts and its hash agree"
        return (
            f"{file_name} has the counts of the official {name} but SHA-256 {sha256}, expected "
            f"{official.sha256}; download it again unless it was rewritten on purpose"
        )
    named = {name.lower(): name for name in OFFICIAL}
    match = _NAMED.fullmatch(file_name)
    name = named.get(match[1].lower()) if match else None
    if name is None:
        return None
    differing = ", ".join(
        f"{counts[key]:,} {key} (expected {value:,})"
        for key, value in OFFICIAL[name].counts.items()
        if counts[key] != value
    )
    return (
        f"{file_name} is named like the official {name} but has {differing}; download it again, or "
        "rename it if it is another dataset"
    )
