"""Analysis: statistics against plain counting, files that are whole, and one-line refusals."""

import collections
import errno
import json
import re
import shutil
import statistics
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import analyze
from pixelrec_jax.ingest import statistics as measured
from pixelrec_jax.ingest.statistics import Distribution
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.described import describe
from tests.tiny import interactions_of


def run(*arguments):
    argv = [sys.executable, "-m", "pixelrec_jax.programs.analyze", *map(str, arguments)]
    return subprocesses.run(argv)


@pytest.fixture
def described(toy_dataset, tmp_path):
    """The toy catalogue with item information: views for all items but the first, tags by turns."""
    ids = load_interactions(toy_dataset).item_ids()
    rows = [f"{item},{k},{'odd' if k % 2 else 'even'}" for k, item in enumerate(ids) if k]
    csv = tmp_path / "info.csv"
    csv.write_text("\n".join(["item_id,view_number,tag", *rows]) + "\n")
    return describe(toy_dataset, csv, tmp_path / "described")


def test_facts_equal_plain_counting(described, monkeypatch):
    monkeypatch.setattr(measured, "_ROWS_PER_BLOCK", 7)  # blocks must not show
    dataset = load_interactions(described)
    facts = measured.analyze(dataset).facts
    items, popularity = dataset.items.tolist(), collections.Counter(dataset.items.tolist())
    lengths = np.diff(dataset.offsets)[1:].tolist()
    counts = sorted(popularity.values(), reverse=True)
    assert (facts["users"], facts["items"]) == (len(lengths), len(popularity)) == (60, len(counts))
    assert facts["interactions"] == len(items)
    assert facts["sparsity"] == pytest.approx(1 - len(items) / 60 / len(popularity))
    of_users, of_items = facts["session_length"], facts["popularity"]
    for summary, numbers in ((of_users, lengths), (of_items, counts)):
        assert summary["least"] == min(numbers)
        assert summary["median"] == statistics.median(numbers)
        assert summary["mean"] == pytest.approx(statistics.mean(numbers))
        assert summary["most"] == max(numbers)
    inside = sum(10 <= length <= 20 for length in lengths)
    assert of_users["share_from_10_to_20"] == pytest.approx(inside / 60)
    first = min(item for item, count in popularity.items() if count == counts[0])
    assert of_items["most_popular_item"] == dataset.item_ids()[first - 1]
    tenth = -(-len(counts) // 10)
    share = sum(counts[:tenth]) / len(items)
    assert of_items["share_of_top_10_percent"] == pytest.approx(share)
    apart = sum(abs(a - b) for a in counts for b in counts)
    assert of_items["gini"] == pytest.approx(apart / (2 * len(counts) * len(items)))
    assert facts["timestamps"]["first"] == min(dataset.timestamps)
    assert facts["timestamps"]["last"] == max(dataset.timestamps)
    assert facts["timestamps"]["dates"][0].startswith("2020-")
    histogram = facts["session_length_histogram"]
    pairs = dict(zip(histogram["interactions"], histogram["count"], strict=True))
    assert pairs == collections.Counter(lengths)
    info = facts["item_information"]
    assert info["items_with"] == {"view_number": len(counts) - 1, "tag": len(counts) - 1}
    assert info["totals"] == {"view_number": sum(range(len(counts)))}
    odd = [count for item, count in popularity.items() if item % 2 == 0]  # tag k is of item k + 1
    row = {"tag": "odd", "items": len(odd), "interactions": sum(odd)}
    assert row in info["most_frequent_tags"]
    assert info["tags"] == 2


@pytest.mark.parametrize("numbers", [[3], [2, 2, 2, 2], [1, 1, 5, 9, 9, 40], [*range(1, 300)]])
def test_quantiles_are_those_of_numpy(numbers):
    distribution = Distribution.of(np.array(numbers))
    for q in (0, 0.1, 0.5, 0.77, 0.99, 1):
        assert distribution.quantile(q) == pytest.approx(np.quantile(numbers, q))
    assert distribution.share_of_top(1) == 1
    if min(numbers) == max(numbers):
        assert distribution.gini() == pytest.approx(0)


@pytest.mark.parametrize(
    ("unit", "first", "has_dates"),
    [
        ("seconds", 1_600_000_000, True),
        ("milliseconds", 1_600_000_000_000, True),
        ("seconds", 17, False),  # does not count from 1970
        ("days", 18_518, False),
        ("other", 1_600_000_000, False),
        ("order", 0, False),
    ],
)
def test_dates_are_told_where_the_unit_of_the_manifest_counts_from_1970(unit, first, has_dates):
    dataset = interactions_of([np.array([1, 2])], 3)
    dataset = replace(
        dataset,
        timestamps=np.array([first, first + 1]),
        manifest={**dataset.manifest, "timestamp_unit": unit},
    )
    facts = measured._timestamps(dataset)
    assert (facts["unit"], facts["first"], facts["last"]) == (unit, first, first + 1)
    assert bool(facts["dates"]) == has_dates
    if has_dates:
        assert facts["dates"][0] == "2020-09-13T12:26:40+00:00"


def test_one_dataset_is_analysed_into_its_folder(described):
    datasets, out = analyze.write([described])
    assert out == described / "analysis"
    facts = measured.analyze(load_interactions(described)).facts  # loads beside its analysis
    assert datasets["described"].facts == facts
    assert json.loads((out / "analysis.json").read_text()) == {"described": facts}
    pictures = ["popularity.png", "session_length.png", "sizes.png"]
    assert sorted(path.name for path in out.iterdir()) == ["analysis.json", *pictures]
    for name in pictures:
        with Image.open(out / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "nothing is drawn"


def test_several_datasets_are_compared_side_by_side(described, toy_dataset, tmp_path):
    datasets, _ = analyze.write([described, toy_dataset], tmp_path / "deep" / "out")
    lines = [re.split(r"\s{2,}", line.strip()) for line in analyze.table(datasets).splitlines()]
    rows = {label: cells for label, *cells in lines}
    assert rows["described"] == ["prepared"]  # the header, whose label is empty
    assert rows["users"] == ["60", "60"]
    facts = datasets["prepared"].facts["popularity"]
    most = f"{facts['most']} ({facts['most_popular_item']})"
    assert rows["most popular item"] == [most, most]
    assert rows["tags"] == ["2"]  # of one dataset only


def test_names_are_paths_where_folders_are_named_alike(toy_dataset, tmp_path):
    other = shutil.copytree(toy_dataset, tmp_path / toy_dataset.name)
    datasets, _ = analyze.write([toy_dataset, other], tmp_path / "out")
    assert list(datasets) == [str(toy_dataset), str(other)]


def test_names_are_drawn_as_they_are(toy_dataset, tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig

    def look(figure, *arguments, **options):
        save(figure, *arguments, **options)
        legend = figure.axes[0].get_legend()
        if legend:
            drawn.extend(text.get_text() for text in legend.get_texts())

    monkeypatch.setattr(Figure, "savefig", look)
    analyze.write([shutil.copytree(toy_dataset, tmp_path / r"_$\no$")])
    assert [text.split(" (")[0] for text in drawn] == [r" _\$\no\$"] * 2


def test_the_program_prints_its_table_or_json(described):
    process = run(described, "--json")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == (described / "analysis" / "analysis.json").read_text()
    process = run("--out=x")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: DIR [DIR ...] is missing; see --help\n"


def test_wrong_input_is_told_and_leaves_nothing(toy_dataset, tmp_path):
    (tmp_path / "file").touch()
    for directories, out, message in (
        ([tmp_path], None, "is not a prepared dataset"),
        ([toy_dataset, tmp_path], tmp_path / "out", "is not a prepared dataset"),
        ([toy_dataset, toy_dataset], tmp_path / "out", "a dataset is named twice"),
        ([toy_dataset, tmp_path], None, "--out is missing"),
        ([toy_dataset], tmp_path / "file", r"file' \(File exists\); name another folder"),
    ):
        with pytest.raises(UserError, match=message):
            analyze.write(directories, out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not (toy_dataset / "analysis").exists()


def test_a_failure_midway_keeps_the_earlier_picture_whole(toy_dataset, tmp_path, monkeypatch):
    analyze.write([toy_dataset], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError, match="No space left on device"):
        analyze.write([toy_dataset], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
