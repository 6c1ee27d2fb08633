"""Wrong sources are refused in one line, also by a worker of Beam."""

import io

import pytest
from PIL import Image

from pixelrec_jax.ingest.tfds.build import build
from pixelrec_jax.system.errors import UserError
from tests.ingest.tfds.given import (
    digests,
    sources,
)


def picture(**options):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", **options)
    return file.getvalue()


REFUSED = {  # name -> config, changed sources, files to write first, match
    "no folder": ("own_items", {"images": "nowhere"}, {}, "no image folder '.*nowhere'"),
    "no file": ("own_interactions", {"interactions": "no.csv"}, {}, "no file '.*no.csv'"),
    "not given": ("own_interactions", {"interactions": None}, {}, "needs interactions; give --"),
    "no images": ("own_items", {"images": "f"}, {"f/a.txt": b"-"}, "f' holds no images"),
    "config": ("own_itms", {}, {}, "own_itms is unknown; did you mean 'own_items'"),
    "twice": ("own_items", {"item_info": "i.csv"}, {"i.csv": b"item_id\na\na\n"}, "'a' twice"),
    "number": (
        "own_items",
        {"item_info": "i.csv"},
        {"i.csv": b"item_id,view_number\na,many\n"},
        "view_number of item 'a' is 'many', expected an integer",
    ),
    "no ids": ("own_items", {"item_info": "i.csv"}, {"i.csv": b"id\na\n"}, "no column item_id"),
    "truncated": (
        "own_items",
        {"images": "f", "interactions": None, "item_info": None},
        {"f/a.jpg": picture()[:-300]},
        "item 'a' has no usable image .* cannot be decoded .*--missing=drop",
    ),
    "absent": ("own_items", {"images": "f"}, {"f/a.jpg": picture()}, "item 'b' .*: missing"),
    "time": (
        "own_items",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\na,u,1\na,u,noon\n"},
        "got 'a,u,noon'",
    ),
    "user": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\na,u,1\na,,2\n"},
        "line 3: user_id is empty",
    ),
    "columns": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"a,b\n1,2\n"},
        "has a, b",
    ),
    "empty": ("own_interactions", {"interactions": "t.csv"}, {"t.csv": b""}, "is empty"),
    "header": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\n"},
        "no interactions",
    ),
}


def refused(raw, folder, name, **options):
    """Asserts one line that matches, and that no dataset is left."""
    config, changed, files, match = REFUSED[name]
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    given = sources(raw, **{k: path and str(folder / path) for k, path in changed.items()})
    with pytest.raises(UserError, match=match) as caught:
        build(config, str(folder / "out"), **given, **options)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("out/pixelrec/own*/*"))


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused_in_one_line(raw, tmp_path, name):
    refused(raw, tmp_path, name)


@pytest.mark.parametrize("name", ["truncated", "time"])
def test_a_worker_of_beam_refuses_in_the_same_line(raw, tmp_path, name):
    refused(raw, tmp_path, name, beam_runner="DirectRunner")


def test_a_place_that_cannot_hold_it_is_refused(raw, tmp_path):
    with pytest.raises(UserError, match=r"cannot build in --out=.*x.csv"):
        build("own_items", str(raw / "x.csv"), **sources(raw))


def test_a_dataset_is_not_overwritten(raw, built):
    before = digests(built)
    with pytest.raises(UserError, match="exists; remove it"):
        build("own_items", str(built), **sources(raw))
    assert digests(built) == before
