"""Arrays of .npy files, mapped into memory."""

import warnings
from pathlib import Path

import numpy as np

from pixelrec_jax.system.errors import reason
from pixelrec_jax.system.files import check_regular


def map_array(path: Path) -> np.ndarray:
    """Returns the array of an .npy file; it takes memory only where it is read.

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
    return array
