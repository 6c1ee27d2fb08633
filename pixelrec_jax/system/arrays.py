"""Arrays of .npy files, mapped into memory if they are large."""

import warnings
from pathlib import Path

import numpy as np

from pixelrec_jax.system.errors import reason
from pixelrec_jax.system.files import check_regular

# Smaller arrays are copied. A map shows what others write to its file, and ends the program with
# SIGBUS where the file was cut.
_MAPPED_FROM = 64 << 20  # bytes


def map_array(path: Path) -> np.ndarray:
    """Returns the array of an .npy file; a large one takes memory only where it is read.

    Raises:
      ValueError: the file is not a complete .npy file of plain values, with the reason.
      OSError: it cannot be read.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # the size overflows
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header is parsed as Python, which raises nearly anything
        raise ValueError(reason(error)) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("several arrays")
    if array.nbytes < _MAPPED_FROM:
        array = np.array(array)
        array.flags.writeable = False
    return array
