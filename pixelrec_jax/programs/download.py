"""Downloads the official files of PixelRec, which are only on Google Drive.

pixelrec download --dataset=pixel200k --out=DIR

The same command continues an interrupted download. DIR/download.json holds the SHA-256 of every
file.
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.ingest.download import DATASETS, GoogleDrive, download
from pixelrec_jax.system import program, storage
from pixelrec_jax.system.foreign import visible


def _define_flags() -> None:
    flags.DEFINE_enum("dataset", None, list(DATASETS), "what to download", required=True)
    program.define_path("out", None, "folder to download to", required=True)
    flags.DEFINE_list("parts", [], "some of interactions, items, covers; by default all")


def main(_: Sequence[str]) -> None:
    """Downloads the dataset that the flags name and lists its files."""
    values = flags.FLAGS
    storage.local_only(values.out, "out", written=True)
    found = download(values.dataset, values.out, parts=values.parts, drive=GoogleDrive())
    for name, facts in found.items():
        size = f"{facts['bytes'] / 1e6:>10,.1f} MB"
        print(f"{visible(facts['sha256'])}  {size}  {values.out}/{visible(name)}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
