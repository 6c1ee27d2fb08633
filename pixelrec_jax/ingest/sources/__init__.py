"""Where `prepare` takes images from: what other programs left, looked up by item id.

Ids are looked up in what a source lists and never joined to a path, and nothing is unpacked: no
name in an archive can lead outside of it.
"""

import tarfile
import zipfile
from pathlib import Path

from pixelrec_jax.ingest.sources.archive import TarImages, ZipImages
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.ingest.sources.lmdb import LmdbImages, is_lmdb
from pixelrec_jax.ingest.sources.source import ImageSource
from pixelrec_jax.system.errors import UserError

__all__ = ["ImageSource", "open_source"]


def open_source(path: Path) -> ImageSource:
    """Opens a folder, tar, zip, LMDB or TFDS dataset, told apart by content.

    Raises:
      UserError: it does not exist, is none of these, cannot be read or holds no images.
    """
    try:
        if path.is_dir():
            kind = next((k for k, fits in _FOLDERS if fits(path)), FolderImages)
        elif path.exists():
            kind = next((k for k, fits in _FILES if fits(path)), None)
        else:
            raise UserError(f"--images={path} does not exist")
        if kind is None:
            raise UserError(
                f"--images={path} is no tar, zip or LMDB; give one of these, a folder of "
                "<item_id>.jpg or a TFDS dataset (a compressed tar must be decompressed first)"
            )
        source = kind(path)
    except OSError as error:
        raise UserError(f"cannot read --images={path}: {error.strerror or error}") from None
    if not len(source.ids):
        raise UserError(f"--images={path} holds no images (<item_id>.jpg, .jpeg, .png or .webp)")
    return source


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _is_tfds(path: Path) -> bool:
    return (path / "dataset_info.json").is_file()


def _open_tfds(path: Path) -> ImageSource:
    from pixelrec_jax.ingest.sources.tfds import TfdsImages

    return TfdsImages(path)


_FOLDERS = ((_open_tfds, _is_tfds), (LmdbImages, is_lmdb))
# A tar may end with a zip, which then is one for `zipfile`, too.
_FILES = ((TarImages, _is_tar), (LmdbImages, is_lmdb), (ZipImages, zipfile.is_zipfile))
