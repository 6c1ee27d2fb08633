"""Warnings of Pillow about images, which do not say which image they are about."""

import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from absl import logging
from PIL import Image

from pixelrec_jax.system.foreign import clean_line

_ITEM = threading.local()
_MOST_SHOWN = 20  # different warnings


def set_item(item_id: str) -> None:
    """Names the item that this thread decodes the image of."""
    _ITEM.name = item_id


@contextmanager
def collected() -> Generator[None]:
    """Logs a line for each different warning at the end: its first item, and how many have it.

    That an image has very many pixels is not logged: such an image is refused, by item.
    """
    found: dict[str, list[str]] = {}

    def collect(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Image.DecompressionBombWarning):
            text = clean_line(str(message), width=200)
            if text in found or len(found) < _MOST_SHOWN:
                found.setdefault(text, []).append(getattr(_ITEM, "name", "?"))

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        cast(Any, warnings).showwarning = collect
        try:
            yield
        finally:
            for text, items in found.items():
                others = len(set(items)) - 1
                more = f" and {others:,} more" if others else ""
                logging.warning("image of item %s%s: %s", repr(items[0])[:60], more, text)
