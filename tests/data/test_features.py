"""Frozen matrices: rows by item, what is refused, and reading from threads and other processes."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from pixelrec_jax.data.features import FeatureStore, item_ids_digest, provenance
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.system.errors import UserError
from tests.described import made_from
from tests.tiny import interactions_of, random_features

N = 12
INTERACTIONS = interactions_of([np.arange(1, N)], N)
FEATURES = random_features(N, 2, 3)
CODES = np.random.default_rng(0).integers(0, 5, (N, 4))


def store_of(folder, matrix, codes=0, interactions=INTERACTIONS) -> FeatureStore:
    np.save(folder / "x.npy", matrix)
    return FeatureStore(folder / "x.npy", interactions, codes=codes)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_rows_are_found_by_item_as_float32(tmp_path, dtype):
    matrix = FEATURES.astype(dtype)
    rows = store_of(tmp_path, matrix).load(np.array([3, 0, N - 1, 3, N, 99], np.int32))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:4], matrix[[3, 0, N - 1, 3]].astype(np.float32))
    assert not rows[4:].any()  # the mask item, and padding of the catalogue


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_features_may_be_whole_numbers(tmp_path, dtype):
    matrix = np.random.default_rng(0).integers(0, 5, (N, 4)).astype(dtype)
    matrix[0] = 0
    rows = store_of(tmp_path, matrix).load(np.array([1, N]))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [matrix[1], np.zeros(4)])


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_codes_are_whole_numbers(tmp_path, dtype):
    rows = store_of(tmp_path, CODES.astype(dtype), codes=5).load(np.array([1, N]))
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, [CODES[1], np.zeros(4)])


def test_threads_and_pickled_copies_read_the_same(toy_dataset, tmp_path):
    interactions = load_interactions(toy_dataset)
    items = interactions.num_items
    matrix = random_features(items, 50)
    store = store_of(tmp_path, matrix, interactions=interactions)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000  # each process maps the file anew
    copy = pickle.loads(pickled)
    batches = [np.arange(n, n + 5) % items for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for ids, rows in zip(batches, threads.map(copy.load, batches), strict=True):
            np.testing.assert_array_equal(rows, matrix[ids])
    assert copy.fingerprint == store.fingerprint


def test_the_fingerprint_is_of_shape_type_and_content(tmp_path):
    other = FEATURES.copy()
    other[5, 1, 2] += 1
    matrices = (FEATURES, other, FEATURES.astype(np.float64), FEATURES.reshape(N, 6))
    assert len({store_of(tmp_path, matrix).fingerprint for matrix in matrices}) == 4


@pytest.mark.parametrize(
    ("matrix", "codes", "message"),
    [
        (FEATURES[1:], 0, r"shape \[11, 2, 3\]; expected \[12, ...\], a row for padding and one"),
        (FEATURES + 1, 0, "row 0 of .* is the row of padding; write item n to row n"),
        (FEATURES[:, 0, 0], 0, r"shape \[12\]; expected \[12, ...\]"),
        (FEATURES[:, :0], 0, r"shape \[12, 0, 3\]"),
        (np.float32(1), 0, r"shape \[\]"),
        (FEATURES, 5, "holds float32; expected whole numbers"),
        (FEATURES > 0, 0, "holds bool; expected real numbers"),
        (FEATURES.astype(object), 0, "not a complete .npy file of numbers"),
        (CODES[..., None], 5, r"shape \[12, 4, 1\]; expected \[12, codes\]"),
        (CODES, 4, "holds codes 0 to 4; expected 0 to item.codebook_size - 1 = 3"),
        (CODES - 1, 5, "holds codes -1 to 3"),
    ],
)
def test_another_matrix_is_refused(tmp_path, matrix, codes, message):
    with pytest.raises(UserError, match=message) as error:
        store_of(tmp_path, matrix, codes)
    assert str(tmp_path / "x.npy") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    path = tmp_path / "nowhere.npy"
    with pytest.raises(UserError, match=r"does not exist; make it with pixelrec extract"):
        FeatureStore(path, INTERACTIONS)
    with pytest.raises(UserError, match=r"does not exist; name another with item\.path"):
        FeatureStore(path, INTERACTIONS, codes=5)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        FeatureStore(tmp_path, INTERACTIONS)


@pytest.mark.parametrize("content", ["text", "nothing", "cut", "header", "archive", "cut archive"])
def test_other_and_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "x.npy"
    np.save(path, FEATURES)
    whole = path.read_bytes()
    with (tmp_path / "x.npz").open("wb") as file:
        np.savez(file, a=FEATURES, b=CODES)
    archive = (tmp_path / "x.npz").read_bytes()
    path.write_bytes(
        {
            "text": b"1.0,2.0\n",
            "nothing": b"",
            "cut": whole[:-10],
            "header": whole[:20],
            "archive": archive,
            "cut archive": archive[:-40],
        }[content]
    )
    with pytest.raises(UserError, match=r"file of numbers|several arrays") as error:
        FeatureStore(path, INTERACTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_when_they_are_read(tmp_path, value):
    matrix = FEATURES.copy()
    matrix[7, 1, 0] = value
    store = store_of(tmp_path, matrix)
    store.load(np.array([1, 2, 8]))
    with pytest.raises(UserError, match=r"row 7 of .*x.npy holds numbers that are not finite"):
        store.load(np.array([1, 7, 8]))


def test_features_of_other_items_are_refused(tmp_path):
    files = {"item_ids.arrow": {"sha256": "these"}}
    ours = replace(INTERACTIONS, manifest={**INTERACTIONS.manifest, "files": files})
    assert item_ids_digest(ours) == "these"
    note = provenance(tmp_path / "x.npy")
    note.write_text(json.dumps(made_from("these")))
    store_of(tmp_path, FEATURES, interactions=ours)
    note.write_text(json.dumps(made_from("others")))
    with pytest.raises(UserError, match="made from another dataset, where items have other ind"):
        store_of(tmp_path, FEATURES, interactions=ours)
    for damaged in ("{", "[]", "{}"):
        note.write_text(damaged)
        with pytest.raises(UserError, match=r"x.json .*; extract the features again"):
            store_of(tmp_path, FEATURES, interactions=ours)
