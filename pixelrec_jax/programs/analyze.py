"""Prints statistics of prepared datasets side by side and writes them as JSON and pictures.

pixelrec analyze data/custom                        # writes data/custom/analysis
pixelrec analyze data/a data/b --out=comparison
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    program.define_path("out", None, "folder to write; for one dataset DIR it is DIR/analysis")
    flags.DEFINE_bool("json", False, "print analysis.json instead of the table")


def main(argv: Sequence[str]) -> None:
    """Analyses the datasets named on the command line."""
    from pixelrec_jax.ingest import analyze

    out = flags.FLAGS.out
    storage.local_only(out, "out", written=True)
    datasets, written = analyze.write(argv[1:], None if out is None else Path(out))
    if flags.FLAGS.json:
        print((written / "analysis.json").read_text(), end="")
    else:
        print(f"{analyze.table(datasets)}\nwrote {written}")


if __name__ == "__main__":
    _define_flags()
    program.run(main, arguments="DIR [DIR ...]")
