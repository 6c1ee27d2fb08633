"""CSV files of users, unread, and what can be wrong with them in one line each."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import polars as pl

from pixelrec_jax.system.errors import UserError

# All columns are text; a star or bracket in a name is no pattern.
scan = partial(pl.scan_csv, infer_schema=False, glob=False)


@contextmanager
def one_line_errors(path: Path, what: str) -> Generator[None]:
    """Raises `UserError` for a file that is missing, unreadable, empty or malformed."""
    try:
        if not path.exists():
            raise UserError(f"{what} {str(path)!r} does not exist")
        if not path.is_file():
            raise UserError(f"{what} {str(path)!r} is no file; give a CSV file")
        with path.open("rb"):  # Say "permission denied" here, in the words of the system.
            pass
        yield
    except pl.exceptions.NoDataError:
        raise UserError(f"{what} {str(path)!r} is empty") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{str(path)!r} is not a valid CSV: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
