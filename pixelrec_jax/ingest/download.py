"""Downloads the official files of PixelRec, which are only on Google Drive.

An interrupted download continues when it is started again. DIR/download.json holds the SHA-256 of
every file.
"""

import contextlib
import dataclasses
import re
import shutil
import sys
from collections.abc import Generator, Sequence
from pathlib import Path, PurePosixPath

from typing_extensions import TypedDict

from pixelrec_jax.ingest.official import OFFICIAL
from pixelrec_jax.system import errors, files
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.schema import Count, Document, Sha256, record

MANIFEST = "download.json"


@record
class Download(TypedDict):
    """A downloaded file."""

    drive_id: str
    bytes: Count
    sha256: Sha256


DOWNLOADS = Document(
    MANIFEST, dict[str, Download], "remove it and start again: downloaded files stay"
)

# Ids of Google Drive, from the README of github.com/westlake-repl/PixelRec.
_INTERACTIONS = "1vR1lgQUZCy1cuhzPkM2q7AsdYRP43feQ"
_ITEMS = "1rXBM-zi5sSdLHNshXWtGgVReWLuYNgDB"
_COVERS = "17V70KN6UOAdphNEc0wXlocFwgmI7hVOo"
_SAMPLE = "1bQPgM-6yAnzcD0jKBoUUheA9LL5xnCHG"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or folder of Google Drive."""

    drive_id: str
    is_folder: bool = True
    word: str = ""  # the files of a folder with this word in their names are taken
    sha256: str | None = None  # the known hash of the file

    @property
    def url(self) -> str:
        """The address of its page, for a browser."""
        kind = "drive/folders" if self.is_folder else "file/d"
        return f"https://drive.google.com/{kind}/{self.drive_id}"


def _parts(name: str, sha256: str | None = None) -> dict[str, Source]:
    return {
        "interactions": Source(_INTERACTIONS, word=name, sha256=sha256),
        "items": Source(_ITEMS, word=name),
        "covers": Source(_COVERS, is_folder=False),  # one file for all four datasets
    }


DATASETS = {
    "pixel200k": _parts("pixel200k", OFFICIAL["Pixel200K"].sha256),
    "pixel1m": _parts("pixel1m"),
    "pixel8m": _parts("pixel8m"),
    "pixelrec": _parts("pixelrec"),
    "pixelrec50k": {"all": Source(_SAMPLE)},
}


class GoogleDrive:
    """Downloads from Google Drive with gdown, without an account, and continues partial files.

    Raises `UserError` if gdown is missing.
    """

    def __init__(self, *, retries: int = 5):
        try:
            import gdown
            import requests
        except ImportError:
            raise UserError(
                "downloading from Google Drive needs gdown; install it: pip install 'gdown>=6.5,<7'"
            ) from None
        self._gdown = gdown
        self._failures = (gdown.DownloadError, requests.RequestException)
        self._retries = retries

    def list_folder(self, source: Source) -> list[tuple[str, str]]:
        """Returns (id, path) of all files of a folder; raises `UserError` if it cannot be read."""
        with self._one_line("the list of files", source.url):
            found = self._gdown.download_folder(
                id=source.drive_id, skip_download=True, quiet=True, use_cookies=False, timeout=60
            )
        listed = []
        for file in found:
            assert not isinstance(file, str), "gdown gives names only of what it downloads"
            listed.append((file.id, file.path))
        return listed

    def fetch(self, drive_id: str, folder: Path, path: str, *, url: str) -> Path:
        """Downloads a file, or the rest of it, to folder/path and returns the path written.

        With an empty `path` the file keeps its own name.

        Raises:
          UserError: the quota is used up, the network fails, or the disk is or would be full; the
            message shows `url` for a browser.
        """
        what = path or folder.name

        def check_space(done: int, total: int | None) -> None:
            if total is not None and total - done > (free := shutil.disk_usage(folder).free):
                raise UserError(
                    f"{what} needs {(total - done) / 1e6:,.0f} MB more, {folder} has "
                    f"{free / 1e6:,.0f} MB; free disk space and start again to continue"
                )

        target = folder / path
        with self._one_line(what, url):
            (target.parent if path else target).mkdir(parents=True, exist_ok=True)
            written = self._gdown.download(
                id=drive_id,
                output=str(target) if path else f"{target}/",
                quiet=not sys.stderr.isatty(),
                use_cookies=False,
                resume=True,
                timeout=60,
                retries=self._retries,
                progress=check_space,
            )
        assert isinstance(written, str), "gdown gives back the kind of output it was given"
        return Path(written)

    @contextlib.contextmanager
    def _one_line(self, what: str, url: str) -> Generator[None]:
        try:
            yield
        except self._failures as error:
            raise UserError(
                f"cannot get {what} from Google Drive ({errors.reason(error)}); start again later "
                f"to go on, or see {url} in a browser"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write {what}: {error.strerror}; mend this and start again to continue"
            ) from None


def download(
    dataset: str, out: str | Path, *, parts: Sequence[str] = (), drive: GoogleDrive
) -> dict[str, Download]:
    """Downloads the missing files of a dataset and returns path -> drive_id, bytes, sha256.

    Args:
      dataset: a key of `DATASETS`.
      out: the folder to download to.
      parts: parts of the dataset (interactions, items, covers); by default all.
      drive: Google Drive.

    Raises:
      UserError: wrong input, a failed download, or a file whose hash is not the known one or has
        changed since the download.
    """
    out, chosen = Path(out), _choose(dataset, parts)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create --out={out}: {error.strerror}; give another folder"
        ) from None
    manifest = _read_manifest(out / MANIFEST)
    wanted, wrong = {}, []
    for part, source in chosen.items():
        for drive_id, path in _files(drive, source):
            name = _there(manifest, out, drive_id, f"{part}/{path}")
            if name is None:
                written = drive.fetch(drive_id, out / part, path, url=source.url)
                name = written.relative_to(out).as_posix()
                manifest.pop(name, None)  # an entry of a file that was removed
            sha256 = files.digest(out / name)
            if name not in manifest:
                size = (out / name).stat().st_size
                manifest[name] = {"drive_id": drive_id, "bytes": size, "sha256": sha256}
                DOWNLOADS.write(out / MANIFEST, manifest)
            elif sha256 != manifest[name]["sha256"]:
                wrong.append(f"{out / name} is not what was downloaded, by its SHA-256")
            if source.sha256 not in (None, sha256):
                wrong.append(f"{out / name} has SHA-256 {sha256}, expected {source.sha256}")
            wanted[name] = manifest[name]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; remove these files and start again")
    return wanted


def _choose(dataset: str, parts: Sequence[str]) -> dict[str, Source]:
    known = DATASETS[dataset]
    for part in parts:
        if part not in known:
            raise UserError(
                f"--parts={part} is not a part of {dataset}{errors.nearest(part, known)}"
            )
    return {part: source for part, source in known.items() if part in parts or not parts}


def _files(drive: GoogleDrive, source: Source) -> list[tuple[str, str]]:
    """Returns (id, path) of the files of a source."""
    if not source.is_folder:
        return [(source.drive_id, "")]
    found = drive.list_folder(source)
    for _, path in found:
        place = PurePosixPath(path)
        if not path.isprintable() or place.is_absolute() or ".." in place.parts:
            raise UserError(
                f"{source.url} holds a file named {path!r}, which is not the name of a file below "
                "--out; look into it in a browser, and put what you need into --out"
            )
    word = re.compile(rf"(?<![a-z0-9]){source.word}(?![a-z0-9])", re.IGNORECASE)
    named = [(drive_id, path) for drive_id, path in found if word.search(path) or not source.word]
    if not named:
        names = ", ".join(path for _, path in found) or "nothing"
        raise UserError(
            f"{source.url} has no file named {source.word}; it holds {names}; look for the file "
            "in a browser and put it into --out"
        )
    return named


def _there(manifest: dict[str, Download], out: Path, drive_id: str, place: str) -> str | None:
    """Returns the name of a file that is there already: downloaded before, or put there."""
    names = [name for name, facts in manifest.items() if facts["drive_id"] == drive_id]
    return next((name for name in (*names, place) if (out / name).is_file()), None)


def _read_manifest(path: Path) -> dict[str, Download]:
    try:
        return DOWNLOADS.read(path)
    except FileNotFoundError:
        return {}
