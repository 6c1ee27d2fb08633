"""Sources of images for `prepare`: folders, archives and datasets, looked up by item id.

An id is looked up in the list of a source and never joined to a path, and nothing is unpacked. So
no name in an archive can lead outside of it.
"""

from pathlib import Path

from pixelrec_jax.ingest.sources.archive import TarImages, ZipImages, is_tar, is_zip
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.ingest.sources.lmdb import LmdbImages, is_lmdb
from pixelrec_jax.ingest.sources.source import ImageSource
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import check_regular

__all__ = ["ImageSource", "open_source"]


def open_source(path: Path) -> ImageSource:
    """Opens a folder, tar, zip, LMDB or TFDS dataset, which is recognised by its content.

    Raises:
      UserError: the path does not exist, cannot be read, is not one of these or holds no images.
    """
    try:
        if path.is_dir():
            kind = next((k for k, fits in _FOLDERS if fits(path)), FolderImages)
        elif path.exists():
            check_regular(path)
            kind = next((k for k, fits in _FILES if fits(path)), None)
        else:
            raise UserError(f"--images={path} does not exist; give a folder or file of images")
        if kind is None:
            raise UserError(
                f"--images={path} is not a tar, zip or LMDB; give one of these, a folder of "
                "<item_id>.jpg or a TFDS dataset (a compressed tar must be decompressed first)"
            )
        source = kind(path)
    except OSError as error:
        within = str(error.filename) if str(error.filename).startswith(f"{path}/") else path
        raise UserError(
            f"cannot read --images={within}: {error.strerror or error}; allow reading it, or give "
            "other images"
        ) from None
    if not len(source.ids) and not source.ambiguous:
        raise UserError(
            f"--images={path} holds no images; name them <item_id>.jpg, .jpeg, .png or .webp"
        )
    return source


def _is_tfds(path: Path) -> bool:
    return (path / "dataset_info.json").is_file()


def _open_tfds(path: Path) -> ImageSource:
    from pixelrec_jax.ingest.sources.tfds import TfdsImages

    return TfdsImages(path)


_FOLDERS = ((_open_tfds, _is_tfds), (LmdbImages, is_lmdb))
# A tar comes first: if it ends with a zip, `zipfile` also takes it.
_FILES = ((TarImages, is_tar), (LmdbImages, is_lmdb), (ZipImages, is_zip))
