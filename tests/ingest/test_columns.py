"""Interactions from a CSV: columns, order, units of time, and one line for what is wrong."""

import numpy as np
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import columns
from pixelrec_jax.ingest.interactions_file import read_interactions
from tests.prepared import HEADER, ROWS, lines, refused, run, sequences


@pytest.mark.parametrize(
    ("first", "last", "unit"),
    [
        (1_600_000_000, 1_700_000_000, "seconds"),
        (1_600_000_000_000, 1_700_000_000_000, "milliseconds"),
        (1_600_000_000 * 10**6, 1_700_000_000 * 10**6, "microseconds"),
        (1_600_000_000 * 10**9, 1_700_000_000 * 10**9, "nanoseconds"),
        (1_600_000_000, 1_600_000_000_000, "other"),  # not all in one unit
        (0, 1_700_000_000, "other"),
        (20_200_101, 20_231_231, "other"),
        (202_001_010_000, 202_312_312_359, "other"),
        (-(2**63), 2**63 - 1, "other"),
    ],
)
def test_times_since_1970_are_recognised(place, first, last, unit):
    (place / "x.csv").write_text(HEADER + lines(("c", "a", time) for time in (first, last, first)))
    manifest = run(place)
    assert manifest["timestamp_unit"] == unit
    stored = load_interactions(place / "out")
    assert stored.timestamps.tolist() == [first, first, last]


def test_columns_go_by_name_ids_are_text_and_files_may_be_untidy(place):
    rows = [f"x,{time},{user},{item}" for item, user, time in ROWS]
    text = "\ufeffnote,timestamp,user_id,item_id\r\n" + "\r\n".join(rows) + "\r\n\r\n"
    (place / "x.csv").write_text(text.replace(",a,", ",007,"), encoding="utf-8", newline="")
    run(place)
    assert sequences(place) == {"b": "adc", "007": "acde"}


def test_sorting_in_blocks_equals_sorting_at_once(place, monkeypatch):
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 20, 400), rng.integers(0, 4, 400), rng.integers(0, 9, 400)
    rows = [("acde"[i], f"u{u}", t) for i, u, t in zip(items, users, times, strict=True)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    monkeypatch.setattr(columns, "_ROWS_PER_BLOCK", 50)
    blocks, by_block = [], columns._by_block

    def counted(*arguments):
        blocks.append([*by_block(*arguments)])
        return iter(blocks[-1])

    monkeypatch.setattr(columns, "_by_block", counted)
    expected, earliest = {}, {}
    for item, user, _ in sorted(rows, key=lambda row: row[2]):  # Python's sort is stable.
        expected[user] = expected.get(user, "") + item
    for user, sequence in expected.items():
        earliest[user] = "".join(dict.fromkeys(sequence))
    manifest = run(place)
    assert all(len(found) > 5 for found in blocks)
    assert sequences(place) == expected
    repeated = sum(map(len, expected.values())) - sum(map(len, earliest.values()))
    assert manifest["source"]["repeats"] == repeated
    table, _ = read_interactions(place / "x.csv")
    assert columns.first_of_repeats(table).sum() == sum(map(len, earliest.values()))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        (HEADER, "has a header but no interactions"),
        ("item,user_id,time\na,b,1\n", "has no column item_id, timestamp; it has item, user_id, t"),
        (HEADER + "a,b,1\n\nc,b,1.5\nc,b,x\n", r"line 5: timestamp 'x' is not a finite number"),
        (HEADER + "a,b,1\na,b,\n", "line 3: timestamp '' is not an integer"),
        (HEADER + "a,b,99999999999999999999\n", "line 2: timestamp '9+' is not an integer"),
        (HEADER + "a,b,1\n,b,2\n", "line 3: item_id is empty"),
        (HEADER + 'a,b,1\nc,"",2\n', "line 3: user_id is empty"),
        (HEADER + "a,b,1,2\n", "is not a valid CSV: found more fields"),
        (HEADER.encode() + b"a,\xff,1\n", "is not a valid CSV: invalid utf-8"),
        (HEADER + "a,b,1\nc,b,2\n" + lines(ROWS[3:]), "1 of 2 users .*'b' has 2.*interactions=3"),
    ],
)
def test_bad_csv(place, text, match):
    (place / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(place, match)


def test_a_star_in_the_name_of_a_file_is_a_star(place):
    (place / "x.csv").rename(place / "x*[1].csv")
    (place / "x2.csv").write_text(HEADER + "other,rows,1\n")
    table, _ = read_interactions(place / "x*[1].csv")
    assert table.counts == {"users": 2, "items": 4, "interactions": 7}
