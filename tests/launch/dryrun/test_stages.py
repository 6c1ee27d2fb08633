"""Stages of a dry run are said when they begin, while they last, and when they end."""

import io
import re
import sys
import time

import pytest

from pixelrec_jax.launch.dryrun import stages


def test_a_file_has_lines_while_a_stage_lasts(monkeypatch, capsys):
    monkeypatch.setattr(stages, "_EVERY", 0.01)
    with stages.stage("compiling"):
        time.sleep(0.2)
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first == "compiling ..."
    assert others
    assert all(re.fullmatch(r"compiling \.\.\. \d+ s", line) for line in others)
    assert re.fullmatch(r"compiling: \d+ s", last)


def test_a_stage_that_fails_says_nothing_more(monkeypatch, capsys):
    monkeypatch.setattr(stages, "_EVERY", 0.01)
    with pytest.raises(KeyError), stages.stage("compiling"):
        raise KeyError
    said = capsys.readouterr().err
    time.sleep(0.05)
    assert "compiling: " not in said
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_elapsed_time(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with stages.stage("compiling"):
        time.sleep(0.2)
    assert re.search(r"compiling.*0:00:0", terminal.getvalue())
    assert terminal.getvalue().endswith("compiling: 0 s\n")
