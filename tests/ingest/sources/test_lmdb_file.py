"""LMDB files are read as the library reads them, and damaged ones without it."""

import random

import lmdb
import pytest

from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.ingest.sources.lmdb_file import read_keys
from pixelrec_jax.system.errors import UserError


def read(path):
    with path.open("rb") as file:
        content = path.read_bytes()
        places = read_keys(file)
    return {key: content[start : start + size] for key, (start, size) in places.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An LMDB of several levels after changes, with what it holds by the library."""
    path = tmp_path_factory.mktemp("lmdb") / "x"
    draw = random.Random(0)
    keys = [draw.randbytes(draw.randint(1, 511)) for _ in range(3000)]
    with lmdb.open(str(path), subdir=False, map_size=2**26) as env:
        for _ in range(4):
            with env.begin(write=True) as transaction:
                for key in draw.sample(keys, 1500):
                    transaction.put(key, draw.randbytes(draw.choice((0, 9, 700, 2030, 9000))))
                for key in draw.sample(keys, 300):
                    transaction.delete(key)
        with env.begin() as transaction, transaction.cursor() as cursor:
            expected = {bytes(key): bytes(value) for key, value in cursor}
    return path, expected


def test_keys_and_values_are_those_of_the_library(written):
    path, expected = written
    assert len(expected) > 1500
    assert read(path) == expected


def test_an_empty_one_has_no_keys(tmp_path):
    with lmdb.open(str(tmp_path / "x"), subdir=False):
        pass
    assert read(tmp_path / "x") == {}


def test_several_values_of_a_key_are_refused(tmp_path):
    with (
        lmdb.open(str(tmp_path / "x"), subdir=False, max_dbs=2) as env,
        env.begin(write=True) as transaction,
    ):
        env.open_db(b"inner", transaction)
    with pytest.raises(ValueError, match="is damaged"):
        read(tmp_path / "x")


def test_damage_is_an_error_and_ends_nothing(written, tmp_path):
    whole, draw, refused = written[0].read_bytes(), random.Random(1), 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(8):
            page = draw.randrange(len(whole) // 4096) * 4096
            content[page + draw.randrange(64)] = draw.randrange(256)
        if draw.random() < 0.1:
            del content[draw.randrange(len(content)) :]
        (tmp_path / "x").write_bytes(content)
        try:
            with (tmp_path / "x").open("rb") as file:
                read_keys(file)
        except ValueError:
            refused += 1
    assert 10 < refused < 100


def test_pages_in_a_circle_are_refused(tmp_path):
    with (
        lmdb.open(str(tmp_path / "x"), subdir=False) as env,
        env.begin(write=True) as transaction,
    ):
        for key in range(1000):
            transaction.put(f"{key:0200}".encode(), b"")
    content = bytearray((tmp_path / "x").read_bytes())
    for page in range(2, len(content) // 4096):
        start = page * 4096
        if int.from_bytes(content[start + 10 : start + 12], "little") == 1:  # a branch page
            place = start + int.from_bytes(content[start + 16 : start + 18], "little")
            content[place : place + 4] = page.to_bytes(4, "little")
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"not a complete LMDB \(its pages lead in circles"):
        open_source(tmp_path / "x")
