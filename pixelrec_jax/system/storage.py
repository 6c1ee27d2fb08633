"""Object storage: a run can be on gs:// as in a folder; other files are copied from any URL.

Requests go through fsspec and its package for the protocol (`gcsfs` for gs://), which also finds
the credentials. Orbax writes checkpoints through tensorstore.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pixelrec_jax.system.errors import TransientError, UserError, reason
from pixelrec_jax.system.redact import is_redacted
from pixelrec_jax.system.temporary import open_lock, remove_leftovers, temporary_file

# If TensorFlow is installed, epath would use it for gs://, with other credentials and errors. It
# reads this variable when it opens its first path.
os.environ.setdefault("EPATH_USE_TF", "false")

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
_MOUNT = "or mount the bucket and give that folder"
_NO_FILE = "there is no such file; check the name"


def is_remote(name: str | Path) -> bool:
    """Returns whether this is a URL and not a path of the local disk."""
    return "://" in str(name)


def expand_user(name: str | Path) -> str:
    """Returns a path with the user's folder in the place of ~, which shells leave in --out=~/a.

    Paths of flags are expanded by `program.define_path`, those of a config by the functions here
    and in `data/` that open them.
    """
    return os.path.expanduser(name)


def local_only(name: str | None, option: str, *, written: bool) -> None:
    """Raises `UserError` if a flag names a URL but takes only local files or folders."""
    if name is None or not is_remote(name):
        return
    copy = "gcloud storage cp --recursive"
    advice = (
        f"give a local folder and copy it afterwards with {copy} FOLDER {name}"
        if written
        else f"copy it to this machine first with {copy} {name} ."
    )
    raise UserError(f"--{option}={name} is not on the local disk; {advice}")


def path(name: str | Path) -> Path:
    """Returns the path of a run: on the local disk, or on gs:// with the same methods.

    Raises:
      UserError: the URL has another protocol, or the bucket cannot be reached.
    """
    if not is_remote(name):
        return Path(expand_user(name))
    check_protocol(name)
    bucket, _, inside = str(name).removeprefix("gs://").partition("/")
    url = f"gs://{bucket}/{inside}".rstrip("/")
    from etils import epath  # imported here because only URLs need it, as fsspec below
    from fsspec.config import conf

    # Files of orbax and of other processes must be visible at once.
    conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    # Without storage.buckets.get, an empty bucket looks like one that does not exist.
    missing = (
        f"there is no bucket {bucket!r}, or it is empty and this account lacks storage.buckets.get;"
        " create it, name another, or allow that"
    )
    with _one_line_errors(url, missing=missing):
        filesystem(url).info(bucket)
    # Not a pathlib.Path by its classes, but by its methods, all that is used of it.
    return cast(Path, epath.Path(url))


def check_protocol(name: str | Path) -> None:
    """Raises `UserError` for a URL that cannot hold a run."""
    protocol, _, inside = str(name).partition("://")
    # Only on gs:// can orbax mark a checkpoint as complete without renaming folders.
    if is_remote(name) and protocol != "gs":
        raise UserError(
            f"{name}: runs are kept on the local disk or on gs://, not on {protocol}://; give one "
            f"of these, {_MOUNT}"
        )
    if is_remote(name) and not inside.strip("/"):
        raise UserError(f"{name} names no bucket; give gs://BUCKET/folder")


def filesystem(url: str) -> Any:
    """Returns fsspec's file system for a URL; raises `UserError` if there is none."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it also raises what it logs
    check_complete(url)
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError:
        package = _PACKAGES.get(protocol, f"the one that fsspec needs for {protocol}")
        raise UserError(
            f"{url}: {protocol}:// needs a Python package that is not installed; pip install "
            f"{package}"
        ) from None
    except ValueError:
        raise UserError(
            f"{url}: the protocol {protocol}:// is unknown; give gs://, s3://, another that fsspec "
            "knows, or a local path"
        ) from None


def check_complete(url: str) -> None:
    """Raises `UserError` for a URL from a stored config that had secrets when it was given."""
    if is_redacted(url):
        raise UserError(
            f"{url} is kept without its secrets; give the whole address again, with --config and "
            "the option that it belongs to"
        )


def upload(source: Path, target: Path) -> None:
    """Copies a local file to object storage, complete or not at all."""
    with _one_line_errors(target, missing="there is no such bucket; create it or name another"):
        filesystem(str(target)).put_file(str(source), str(target))


def remove(folder: Path) -> None:
    """Removes all objects in a folder of object storage."""
    with _one_line_errors(folder, missing="there is no such folder"):
        filesystem(str(folder)).rm(str(folder), recursive=True)


def read(url: str, *, missing: str) -> bytes:
    """Returns the content of a URL; raises `UserError`, with the text `missing` if it is absent."""
    with _one_line_errors(url, missing=missing):
        return filesystem(url).cat_file(url)


def download(url: str, target: Path) -> None:
    """Copies a URL to a local file, complete or not at all."""
    with temporary_file(target.parent) as temporary:
        with _one_line_errors(url, missing=_NO_FILE):
            filesystem(url).get_file(url, str(temporary))
        temporary.replace(target)


def local_file(name: str | Path, *, beside: str | None = None) -> Path:
    """Returns a local file; for a URL, a copy in the cache, which is renewed if the file changed.

    If the URL also exists with the suffix `beside` instead of its own, both files are copied.
    """
    if not is_remote(name):
        return Path(expand_user(name))
    url = str(name)
    system = filesystem(url)
    with _one_line_errors(url, missing=_NO_FILE):
        if system.isdir(url):
            raise UserError(f"{url} is a folder; name a file in it")
        version = system.ukey(url)
    key = hashlib.sha256(f"{url} {version}".encode()).hexdigest()[:16]
    folder, urls = cache() / "files" / key, [url]
    other = url.removesuffix(Path(url).suffix) + str(beside)
    if beside is not None and system.exists(other):
        urls.insert(0, other)  # first, so that both files are there when the main one is
    with exclusive(folder):
        for each in urls:
            target = folder / each.partition("?")[0].rpartition("/")[2]
            if not target.exists():
                download(each, target)
    return target


def cache() -> Path:
    """Returns the folder for copies: $PIXELREC_CACHE, by default one in the user's cache."""
    if folder := os.environ.get("PIXELREC_CACHE"):
        return Path(folder).expanduser()
    import pooch  # imported here because it is slow

    return Path(pooch.os_cache("pixelrec_jax"))


@contextmanager
def exclusive(
    folder: Path,
    *,
    waiting: Callable[[], None] = lambda: None,
    remedy: str = "name another folder in the environment variable PIXELREC_CACHE",
) -> Generator[None]:
    """Creates a folder of the cache and locks it; waits while another process holds the lock.

    Args:
      folder: the folder.
      waiting: called if another process holds the lock, before this one waits.
      remedy: what to do if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder / ".lock")
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be written ({error.strerror}); {remedy}"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftovers(folder)
        yield


@contextmanager
def _one_line_errors(url: str | Path, *, missing: str) -> Generator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{url}: {missing}") from None
    # Each package has its own errors (credentials, permission, network) and one piece of advice.
    except Exception as error:
        raise TransientError(
            f"{url} cannot be reached ({reason(error)}); check the name, the permissions and the "
            "credentials, for gs:// with gcloud auth application-default login"
        ) from error
