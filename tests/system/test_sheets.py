"""Tables in every form: they fit the terminal and keep every cell."""

import sys

import pytest

from pixelrec_jax.system.sheets import Sheet, as_latex, as_markdown, as_text

_SHEET = Sheet(
    "toy_1: all & more",
    [
        ("percent", "recall@5", "ndcg@5", "recall@10", "ndcg@10"),
        ("popularity", *["27.88 ±1.76"] * 4),
        ("sasrec, item=efficientnet_lite0 (runs/a_long_name/of/a_run)", *["27.88 ±1.76"] * 4),
    ],
)


@pytest.mark.parametrize("columns", [40, 60, 76, 80, 140])
def test_text_fits_the_terminal_and_loses_nothing(monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = as_text([_SHEET])
    assert max(map(len, text.splitlines())) <= columns
    assert text.count("27.88 ±1.76") == 8
    for header in _SHEET.rows[0][1:]:
        assert text.count(header) == 1
    if columns >= 76:  # one table
        assert text.count("percent") == 1


def test_without_a_terminal_no_label_is_folded():
    assert f"\n{_SHEET.rows[2][0]} " in as_text([_SHEET])


def test_markdown_has_a_row_for_each_row():
    lines = as_markdown([_SHEET]).splitlines()
    assert lines[0] == "**toy_1: all & more**"
    assert len(lines) == 2 + 1 + len(_SHEET.rows)
    assert {line.count("|") for line in lines[2:]} == {6}
    assert as_markdown([Sheet("a", [("b|c", "d")])]).count(r"b\|c") == 1


def test_latex_escapes_what_it_would_take_for_commands():
    text = as_latex([_SHEET])
    assert r"toy\_1: all \& more" in text
    assert text.count(r"27.88 $\pm$1.76") == 8
    assert text.count(r"\\") == len(_SHEET.rows)
    assert r"\begin{tabular}{lrrrr}" in text


@pytest.mark.parametrize("form", [as_text, as_markdown, as_latex])
def test_foreign_text_cannot_move_the_cursor(form):
    text = form([Sheet("a\x1b[2J", [("b\x1b[2J", "c"), ("d\x1b]0;x\x07", "e\x1b")])])
    assert not set(text) & {"\x1b", "\x07"}
