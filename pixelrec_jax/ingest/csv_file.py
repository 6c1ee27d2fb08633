"""CSV files: lazy scans, and one-line errors."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pixelrec_jax.system.errors import UserError


@contextmanager
def one_line_errors(path: Path, what: str) -> Generator[None]:
    """Raises `UserError` for a file that is missing, unreadable, empty or malformed."""
    try:
        if not path.exists():
            raise UserError(f"{what} {str(path)!r} does not exist; give a CSV file")
        if not path.is_file():
            raise UserError(f"{what} {str(path)!r} is not a file; give a CSV file")
        with path.open("rb"):  # raises "Permission denied" in the words of the system
            pass
        yield
    except pl.exceptions.NoDataError:
        raise UserError(f"{what} {str(path)!r} is empty; give a CSV file with a header") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{str(path)!r} is not a valid CSV: {str(error).splitlines()[0]}; mend it, or give "
            "another file"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read {str(path)!r}: {error.strerror or error}; allow reading it, or give "
            "another file"
        ) from None
