"""Small valid files of every format that a reader takes."""

import gzip
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

from tests.ingest.pictures import picture, write_lmdb
from tests.tiny import tiny_config
from tests.weights.pickles import Inner

_ROWS = [
    (f"i{(3 * user + k) % 7}", f"u{user}", 1_600_000_000 + k) for user in range(4) for k in range(5)
]
_FRAME = pl.DataFrame(_ROWS, schema=["item_id", "user_id", "timestamp"], orient="row")
_INFO = pl.DataFrame(
    {"item_id": [f"i{n}" for n in range(7)], "title": ['a "b", c'] * 7, "view_number": range(7)}
)


def _files(make: Callable[[Path], object]) -> list[bytes]:
    """Returns the contents of the files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def _buffer(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _tables(frame: pl.DataFrame) -> list[bytes]:
    text = frame.write_csv().encode()
    quoted = frame.write_csv(quote_style="always").encode()
    return [
        text,
        quoted,
        text.replace(b"\n", b"\r\n"),
        text.replace(b",", b"\t"),
        gzip.compress(text, mtime=0),
        _buffer(frame.write_parquet),
        _buffer(frame.write_ipc),
    ]


@cache
def interactions() -> list[bytes]:
    """Interactions as CSV of several kinds, gzip, Parquet and Arrow."""
    dates = _FRAME.with_columns(pl.from_epoch("timestamp").cast(pl.String))
    return [*_tables(_FRAME), dates.write_csv().encode()]


@cache
def item_info() -> list[bytes]:
    """Item information in the same formats."""
    return _tables(_INFO)


@cache
def urls() -> list[bytes]:
    """Lists of addresses."""
    return _tables(pl.DataFrame({"item_id": ["a", "b"], "url": ["http://a.example/1.jpg", ""]}))


@cache
def images() -> list[bytes]:
    """Images of all formats and modes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 99, zip=True)
    whole = Image.open(io.BytesIO(picture(0)[0]))
    found = [picture(0)[0]]
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        image = whole.convert("L" if mode == "I;16" else mode)
        for kind in ("PNG", "JPEG", "WEBP"):
            options = {"pnginfo": text} if kind == "PNG" else {}
            with_mode = {
                "PNG": ("L", "P", "RGBA", "I;16"),
                "JPEG": ("L", "CMYK"),
                "WEBP": ("RGBA",),
            }
            if mode in with_mode[kind]:
                if mode == "I;16":
                    image = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 999)
                found.append(_buffer(lambda file, i=image, k=kind, o=options: i.save(file, k, **o)))
    frames = {"save_all": True, "append_images": [whole.convert("L").convert("RGB")]}
    for kind in ("PNG", "WEBP"):
        found.append(_buffer(lambda file, k=kind: whole.save(file, k, **frames)))
    return found


_NAMES = ("a.png", "b/c.PNG", "b/d.jpg", "e.txt")


@cache
def zips() -> list[bytes]:
    """Zips, stored and compressed."""

    def write(file: io.BytesIO, method: int) -> None:
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in (*_NAMES, "é.png"):
                archive.writestr(zipfile.ZipInfo(name), picture(0)[0], method)

    return [_buffer(lambda file, m=m: write(file, m)) for m in (0, 8, 12)]


@cache
def tars() -> list[bytes]:
    """Tars of all forms, with links and long names."""

    def write(file: io.BytesIO, form: int) -> None:
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for name in (*_NAMES, "l" * (90 if form == tarfile.USTAR_FORMAT else 150) + ".png"):
                member = tarfile.TarInfo(name)
                member.size = len(picture(0)[0])
                archive.addfile(member, io.BytesIO(picture(0)[0]))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.LNKTYPE, "a.png"
            archive.addfile(link)

    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [_buffer(lambda file, f=form: write(file, f)) for form in forms]


@cache
def lmdbs() -> list[bytes]:
    """An LMDB whose values lie in pages of keys and in pages of their own."""
    name = b"c__main__\nLMDB_Image\n)\x81"

    def image(height: int) -> bytes:
        state = {"size": (height, 2), "image": bytes(height * 6), "channels": 3, "id": "x"}
        return b"\x80\x04" + name + pickle.dumps(state, 4)[2:-1] + b"b."

    values = {f"i{n:03}": image(1 + n) for n in range(99)} | {"long": image(900)}
    return _files(lambda folder: write_lmdb(folder / "x", values))[:1]


@cache
def weights() -> list[bytes]:
    """Weights as safetensors and in the three forms of PyTorch."""
    state = Inner().state_dict()

    def write(folder: Path) -> None:
        for new in (True, False):
            torch.save(
                {"state_dict": state, "a": [1, None]},
                folder / f"{new}",
                _use_new_zipfile_serialization=new,
            )
        torch.jit.save(torch.jit.script(Inner()), folder / "jit")

    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    return [save(tensors, {"format": "pt"}), *_files(write)]


@cache
def features() -> list[bytes]:
    """Matrices of features, in both orders."""
    matrix = np.zeros((5, 3), np.float32)
    return [
        _buffer(lambda file: np.save(file, matrix)),
        _buffer(lambda file: np.save(file, np.asfortranarray(matrix.astype(np.float16)))),
    ]


@cache
def configs() -> list[bytes]:
    """config.json of runs."""
    words = ("user=sasrec,item=id,dataset=toy", "user=mf,item=vit_toy,dataset=toy")
    return [json.dumps(tiny_config(w, "data").to_dict(), indent=2).encode() for w in words]


@cache
def results() -> list[bytes]:
    """result.json of a run."""
    estimate = {"value": 0.25, "low": 0.125, "high": None}
    groups = {group: {"recall@10": estimate, "ndcg@10": estimate} for group in ("all", "cold")}
    rankings = dict.fromkeys(("model", "popularity", "random"), groups)
    test = {"split": "test", "users": {"all": 9, "cold": 1}, "repeated_targets": 0, "items": 7}
    content = {
        "model": {"user": "mf", "item": "id", "parameters": 10, "trainable_parameters": 9},
        "dataset": "toy",
        "interactions": "0" * 64,
        "split": {"name": "leave_one_out"},
        "best_step": 3,
        "test": test | {"cold_threshold": 3} | rankings,
    }
    return [json.dumps(content, indent=2).encode()]


@cache
def indices() -> list[bytes]:
    """An index of weights in one file, a.safetensors."""
    names = dict.fromkeys(Inner().state_dict(), "a.safetensors")
    return [json.dumps({"metadata": {"total_size": 1}, "weight_map": names}).encode()]
