"""Loading a prepared dataset: all of it, or one line that says what is wrong."""

import json
import pickle

import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.system.errors import UserError
from tests.prepared import run


def test_a_manifest_without_a_unit_is_damaged(place):
    manifest = run(place)
    del manifest["timestamp_unit"]
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json has no field timestamp_unit"):
        load_interactions(place / "out")


def test_a_manifest_that_lacks_a_file_is_damaged(place):
    (place / "info.csv").write_text("item_id,title\na,b\n")
    manifest = run(place, item_info=place / "info.csv")
    for name in manifest["files"]:
        files = {key: value for key, value in manifest["files"].items() if key != name}
        (place / "out" / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(UserError, match=rf"manifest.json.* has no field files\['{name}'\]"):
            ImageStore(load_interactions(place / "out").directory, size=4)


def test_load_refuses_what_is_not_whole(place):
    with pytest.raises(UserError, match=r"is not a prepared dataset.*run pixelrec prepare"):
        load_interactions(place)
    run(place)
    out = place / "out"
    items = (out / "items.npy").read_bytes()
    (out / "items.npy").write_bytes(items[:-4])
    with pytest.raises(UserError, match=r"damaged: items.npy has 152 bytes, .* says 156 bytes"):
        load_interactions(out)
    (out / "items.npy").unlink()
    with pytest.raises(UserError, match=r"damaged: items.npy is missing"):
        load_interactions(out)
    (out / "items.npy").write_bytes(items)
    manifest = json.loads((out / "manifest.json").read_text())
    changed = {**manifest, "counts": {**manifest["counts"], "users": 5}}
    (out / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"offsets.npy holds int64\[4\], .*says int64\[7\]"):
        load_interactions(out)
    (out / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    with pytest.raises(UserError, match="has schema version 1, but this program reads version 3"):
        load_interactions(out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is not valid JSON"):
        load_interactions(out)


@pytest.mark.parametrize("name", ["offsets", "items", "timestamps", "image_rows"])
def test_load_compares_what_cannot_be_checked_otherwise(place, name):
    run(place)
    path = place / "out" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged: {name}.npy has other content"):
        load_interactions(place / "out")


def test_interactions_travel_to_other_processes_as_a_path(place):
    run(place)
    stored = load_interactions(place / "out")
    pickled = pickle.dumps(stored)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.items, stored.items)


def test_ids_are_readable_arrow_files(place):
    run(place)
    frame = pl.read_ipc(place / "out" / "user_ids.arrow")
    assert frame.to_dict(as_series=False) == {"user_id": ["b", "a"]}
