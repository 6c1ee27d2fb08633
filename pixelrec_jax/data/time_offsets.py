"""Time offsets within a history, for models that read times; the task chooses their unit.

Timestamps stay int64 on the host, in the dataset's own unit. A device would wrap them silently, so
it gets int32 offsets from the last event of the history.
"""

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.time_units import ORDER, OTHER, UNITS
from pixelrec_jax.system.errors import UserError, nearest

_LARGEST = np.iinfo(np.int32).max


class TimeOffsets:
    """Computes how long before the last event of its history each event was, in a task's unit."""

    def __init__(self, interactions: Interactions, unit: str):
        """Prepares offsets in `unit`, which is one of `UNITS`.

        Raises:
          UserError: the unit is unknown, or the unit of the dataset's timestamps is.
        """
        if unit not in UNITS:
            raise UserError(f"unknown unit of time {unit!r}{nearest(unit, UNITS)}")
        own = interactions.manifest.get("timestamp_unit", OTHER)
        if own not in UNITS:
            meaning = "an order only" if own == ORDER else "in a unit that is not known"
            raise UserError(
                f"the model reads times in {unit}, but the timestamps of "
                f"{str(interactions.directory)!r} are {meaning}; prepare it again with "
                f"--timestamp_unit, one of {', '.join(UNITS)}"
            )
        self.interactions, self._unit = interactions, own
        self._divisor = max(UNITS[unit] // UNITS[own], 1)
        self._factor = max(UNITS[own] // UNITS[unit], 1)

    @property
    def fingerprint(self) -> str:
        """The hash of the timestamps and their unit; "" for data in memory."""
        files = self.interactions.manifest.get("files", {})
        return files["timestamps.npy"]["sha256"] + self._unit if files else ""

    def of(self, event: np.ndarray) -> np.ndarray:
        """Returns int32[B, L], 0 or more, rounded down and at most 2^31 - 1; 0 at padding.

        Args:
          event: int64[B, L], indices into the interaction columns, in order of time; -1 at padding.
        """
        real = event >= 0
        # As uint64, the difference of any two int64 is exact.
        timestamp = np.asarray(self.interactions.timestamps[np.where(real, event, 0)])
        timestamp = timestamp.view(np.uint64)
        offset = (timestamp[:, -1:] - timestamp) // np.uint64(self._divisor)
        # Saturate before the product, so that it cannot wrap, and after it.
        offset = np.minimum(offset, np.uint64(_LARGEST // self._factor + 1))
        offset = np.minimum(offset * np.uint64(self._factor), np.uint64(_LARGEST))
        return np.where(real, offset, 0).astype(np.int32)
