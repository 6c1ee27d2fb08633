"""Item ids of interactions, matched to the names of images that are written a little otherwise."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from pixelrec_jax.ingest.sources.source import ImageSource, is_image

MISSING = "missing"  # how the reason begins for an item without an image
_ZEROS = re.compile(r"^0+(?=.)|\.0+$")  # 0108 for 108, and 108.0


def _normal(name: str) -> str:
    """Returns a name in the Unicode form NFC and without the suffix of an image."""
    name = unicodedata.normalize("NFC", name)
    path = PurePosixPath(name)
    return name[: -len(path.suffix)] if is_image(path) else name


def _loose(name: str) -> str:
    """Returns what is left of a name without case, leading zeros and the .0 of a float."""
    return _ZEROS.sub("", _normal(name).casefold())


class MatchedImages:
    """The images of a source under the item ids of interactions.

    An id has the image of exactly its name. Otherwise it has the image whose name differs only in
    Unicode form or in the suffix of an image, if no other id and no other image could be meant.
    Names that differ in case or leading zeros are not matched, since these tell items apart in many
    catalogues; `missing` shows both sides.

    Memory: some hundred bytes for each item and image.

    Attributes:
      unnamed: with `every`, sorted names of images that no id means, which are ids as well.
    """

    def __init__(self, source: ImageSource, item_ids: Sequence[str], *, every: bool = False):
        named, wanted = {*source.ids, *source.ambiguous}, set(item_ids)
        others, free = wanted - named, named - wanted
        self._source = source
        self._names: dict[str, str] = {}  # of the images of ids that are written otherwise
        images = _by(_normal, free) if others else {}
        for key, meant in _by(_normal, others).items():
            if len(meant) == len(images.get(key, ())) == 1:
                self._names[meant[0]] = images[key][0]
        self.unnamed = sorted(free - {*self._names.values()}) if every else []
        self._some_match = len(others) < len(wanted) or bool(self._names)
        self._similar = _by(_loose, named) if len(others) > len(self._names) else {}
        wanted |= {*self.unnamed}
        self._ambiguous = {
            item_id: source.ambiguous[self._name(item_id)]
            for item_id in (wanted if source.ambiguous else ())
            if self._name(item_id) in source.ambiguous
        }
        self._ids = (wanted - others | self._names.keys()) - self._ambiguous.keys()

    def _name(self, item_id: str) -> str:
        return self._names.get(item_id, item_id)

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._ids

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """A line on each item id whose image cannot be told."""
        return self._ambiguous

    def missing(self, item_id: str) -> str:
        """Returns why an item has no image: with the names of images that it may mean."""
        similar = self._similar.get(_loose(item_id), [])
        if not similar and not self._some_match:
            similar = [*self._source.ids][:1]
        if not similar:
            return MISSING
        names = " and ".join(map(repr, sorted(similar)[:2])) + (", ..." if similar[2:] else "")
        return f"{MISSING}; interactions name {item_id!r}, images have {names}"

    def fingerprint(self, item_id: str) -> str:
        """Returns a text that changes when the image changes, without reading the image."""
        return self._source.fingerprint(self._name(item_id))

    def read(self, item_id: str) -> bytes | np.ndarray:
        """Returns an encoded file or pixels uint8[H, W, 3]; raises `ValueError` with the reason."""
        return self._source.read(self._name(item_id))

    def close(self) -> None:
        """Closes the source."""
        self._source.close()


def _by(key: Callable[[str], str], names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names by what a function makes of them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found
