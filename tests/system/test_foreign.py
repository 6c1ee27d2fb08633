"""Text of others does nothing where it is printed: to a terminal, a log or a spreadsheet."""

import csv
import io
import logging
import pickle

import pytest
from absl import logging as absl_logging
from rich.table import Table

from pixelrec_jax.ingest.tfds import items
from pixelrec_jax.runs import progress
from pixelrec_jax.system import console, errors, files, program
from pixelrec_jax.system.errors import TransientError, UserError
from pixelrec_jax.system.foreign import clean_line, csv_cell, visible

HARM = {
    "colour": "\x1b[31mred",
    "title of the window": "\x1b]0;owned\x07",
    "one-byte escape": "\x9b31m",
    "lines": "a\nerror: b\r\nc\u2028d\x85e\x0bf",
    "backspaces": "abc\b\b\b",
    "NUL": "a\0b",
    "right to left": "\u202egnp.exe\u2066x\u200f",
    "half a pair": "\ud800",
    "markup": "[/x][bold]y[/bold] :smiley: [link=http://e.x]z",
}


@pytest.fixture(params=HARM)
def harm(request):
    return HARM[request.param]


def is_harmless(text):
    return all(line.isprintable() for line in text.split("\n"))


def test_a_message_is_one_visible_line(harm, capsys):
    for error in (UserError(f"before {harm} after"), TransientError(harm + " after")):
        assert str(error).isprintable()
        assert str(error).endswith("after")
        with pytest.raises(SystemExit, match=str(error.exit_code)), program.one_line_errors():
            raise error
        assert capsys.readouterr().err == f"error: {error}\n"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as from a worker
    assert errors.reason(ValueError(harm)).isprintable()
    with pytest.raises(SystemExit), program.one_line_errors():
        raise OSError(28, "full", f"/{harm}")
    assert is_harmless(capsys.readouterr().err)


def test_a_long_message_is_cut_and_keeps_what_to_do():
    message = str(UserError(f"the file begins with {'x' * 10**6}; give another"))
    assert message.startswith("the file begins with xx")
    assert message.endswith("xx; give another")
    assert len(message) == 3000


def test_short_text_stays_as_it_is():
    for text in ("a  b", "é 日本 \N{GRINNING FACE}", "[link] {x} %s $y$"):
        assert visible(text) == str(UserError(text)) == csv_cell(text) == text


def test_a_table_keeps_its_lines(harm):
    def lines(text):
        table = Table(title=f"of {text}")
        table.add_column(text)
        table.add_row(text)
        return console.render([table])

    assert is_harmless(lines(harm))
    assert lines(harm).count("\n") == lines("x").count("\n")
    assert visible(harm).strip() in lines(harm)


def test_a_line_of_progress_is_one_line(harm, capsys):
    shown = progress.TrainingProgress(start=0, total=1, steps_per_epoch=1, eval_every=1)
    shown.say(f"training on {harm}")
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.rstrip() == f"training on {visible(harm)}".rstrip()


def test_a_log_is_of_one_line_for_each_warning(harm, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    absl_logging.get_absl_logger().addHandler(caplog.handler)

    def fail(*_):
        raise ValueError(harm)

    monkeypatch.setattr(items.images, "decode", fail)
    (tmp_path / "a.png").write_bytes(b"x")
    row = {"item_id": harm}
    with caplog.at_level(logging.WARNING):
        assert not list(items.examples(row, "a.png", folder=str(tmp_path), missing="drop"))
    absl_logging.get_absl_logger().removeHandler(caplog.handler)
    assert {record.getMessage().isprintable() for record in caplog.records} == {True}


def test_cells_of_a_spreadsheet(harm, tmp_path):
    rows = [("=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)"), ("-2", "-2.5", "+3"), ("-x", harm, "")]
    files.write_csv(tmp_path / "x.csv", ("a", "b", "c"), rows)
    content = (tmp_path / "x.csv").read_bytes().decode()
    assert is_harmless(content)
    read = list(csv.reader(io.StringIO(content)))[1:]
    assert read[0] == ["'=1+1", "'+cmd|' /C calc'!A0", "'@SUM(A1)"]
    assert read[1] == ["-2", "-2.5", "+3"]  # numbers are no formulas
    assert read[2] == ["'-x", visible(harm).strip(), ""]
    assert len(csv_cell("x" * 10**6)) == 4000


def test_a_clean_line_has_at_most_its_width(harm):
    line = clean_line((harm + "x") * 30, width=30)
    assert len(line) == 30
    assert line.isprintable()
    assert clean_line(None, width=5) == ""
