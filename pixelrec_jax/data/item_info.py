"""Item information (views, title, tag, ...) of a prepared dataset."""

import polars as pl

from pixelrec_jax.data.interactions import ITEM_INFO, Interactions
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.frames import POLARS_ERRORS, scan_ipc

FILE = ITEM_INFO


def load(interactions: Interactions) -> pl.DataFrame | None:
    """Returns the item information of a dataset, or None if it was prepared without it.

    Row i of the table is item i + 1. Raises `UserError` if the file is damaged.
    """
    if FILE not in interactions.manifest["files"]:
        return None
    path = interactions.directory / FILE
    try:
        frame = scan_ipc(path).collect()
        if frame.height != interactions.num_items - 1:
            raise OSError(f"{frame.height:,} rows for {interactions.num_items - 1:,} items")
        return frame
    except (OSError, *POLARS_ERRORS) as error:
        if is_of_machine(error):
            raise
        raise UserError(
            f"{str(path)!r} cannot be read ({reason(error)}); prepare the dataset again"
        ) from None
