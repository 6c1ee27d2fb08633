"""Lazy frames of files: a path names one file, whatever characters it has.

By default polars takes a path for a pattern: `own[2]` is then another folder, `own2`. All of the
program reads files through these functions and `ingest.csv_file`; ruff refuses those of polars
elsewhere.
"""

from functools import partial

import polars as pl

# A damaged file also ends in an error of Rust that is not an `Exception`.
POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)

scan_ipc = partial(pl.scan_ipc, glob=False)
scan_parquet = partial(pl.scan_parquet, glob=False)
