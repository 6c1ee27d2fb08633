"""The live line of a run: true at every moment, and within the width of the terminal."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from pixelrec_jax.runs.progress import TrainingProgress, clock, format_metrics, words_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


class FakeGoodput(SimpleNamespace):
    """What a run does, as a test says."""

    phase_now, phase_seconds, trained = "other", 0.0, 0.0

    def seconds(self, name):
        return getattr(self, name, 0.0)


@pytest.fixture
def run(monkeypatch):
    """A run of 20 epochs of 10 steps that continues after step 35, in a terminal of 80 columns."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    shown = TrainingProgress(start=35, total=200, steps_per_epoch=10, eval_every=1)
    goodput = FakeGoodput()
    with shown.showing(goodput):
        yield shown, goodput


def line(run) -> str:
    shown, _ = run
    with shown._console.capture() as capture:
        shown._console.print(shown._line())
    return re.sub(r"\x1b\[[\d;]*m", "", capture.get()).rstrip("\n")


def do_step(run, step, seconds):
    shown, goodput = run
    shown.shape((1, 8))
    goodput.trained += seconds
    shown.step(step)


def test_a_new_shape_is_compiled_before_its_first_step_only(run):
    shown, goodput = run
    goodput.phase_now = "step"
    for shape, step in (((1, 8), 36), ((1, 8), 37), ((1, 16), 38), ((1, 8), 39)):
        shown.shape(shape)
        assert ("compiling" in line(run)) == (step in (36, 38))
        shown.step(step)
        assert "training" in line(run)


def test_the_time_left_counts_steps_evaluations_and_saves_without_compilation(run):
    shown, goodput = run
    assert "eta -:--:--" in line(run)
    do_step(run, 36, 100.0)  # from the start to the first step
    assert "eta -:--:--" in line(run)
    do_step(run, 37, 2.0)
    do_step(run, 38, 4.0)
    assert "eta 0:08:06" in line(run)  # 162 steps of 3 s
    goodput.phase_now = "evaluation"
    with shown.evaluation(4):
        goodput.evaluation = 5.0
    assert "eta 0:09:31" in line(run)  # and 17 evaluations of 5 s
    goodput.save = 2.0
    do_step(run, 39, 3.0)
    assert "eta 0:10:02" in line(run)  # 161 steps of 3 s, 17 evaluations of 5 s and saves of 2 s


def test_an_evaluation_has_its_own_bar_and_belongs_to_the_epoch_before(run):
    shown, goodput = run
    do_step(run, 40, 1.0)
    goodput.phase_now = "evaluation"
    with shown.evaluation(4) as advance:
        advance(3)
        assert "epoch 4/20" in line(run)
        assert "evaluating 3/4" in line(run)
    goodput.phase_now = "save"
    assert "saving" in line(run)
    goodput.phase_now = "step"
    assert "epoch 5/20" in line(run)


def test_the_epoch_is_right_after_a_restart(run):
    assert "epoch 4/20 step 35/200" in line(run)


def test_a_long_wait_for_data_is_said(run):
    _, goodput = run
    goodput.phase_now = "input"
    assert "training" in line(run)
    goodput.phase_seconds = 2.0
    assert "waiting for data" in line(run)


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_line_fits_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    large = TrainingProgress(start=0, total=9_876_543, steps_per_epoch=98_765, eval_every=1)
    with large.showing(FakeGoodput(phase_now="evaluation")), large.evaluation(4321):
        large.stopping()
        large.status(5, {"train/loss": 0.123456, "train/steps_per_second": 123.4})
        shown = line((large, None))
    assert len(shown) <= columns - 2
    assert re.match(r"\d:\d\d:\d\d eta ", shown)
    assert "stopping: evaluating 0/4321" in shown


def test_without_a_terminal_there_are_plain_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    shown, goodput = (
        TrainingProgress(start=0, total=9, steps_per_epoch=3, eval_every=1),
        FakeGoodput(),
    )
    with shown.showing(goodput):
        for step in (1, 2, 3):
            do_step((shown, goodput), step, 2.0)
        with shown.evaluation(4):
            goodput.evaluation = 5.0
        goodput.save = 1.0
        for step in (4, 5):
            do_step((shown, goodput), step, 2.0)
        shown.status(3, {"train/loss": 0.5, "time/total": 3.0})
        shown.stopping()
        shown.stopping()
    told, whole, status, stopping = log.getvalue().splitlines()
    assert told.startswith("an epoch of 3 steps takes about 6 s without its evaluation; all 6 ")
    # Five steps of 2 s, two evaluations of 5 s with saves of 1 s.
    assert whole == "with evaluations and saves, the 5 steps to come take about 22 s"
    assert status == "step 3: loss 0.5"
    assert stopping.startswith("stopping: waits for the step in progress")
    assert "\x1b" not in log.getvalue()


def test_durations_and_metrics_are_for_readers():
    assert [clock(x) for x in (None, 0.4, 61, 36_061)] == [
        "-:--:--",
        "0:00:00",
        "0:01:01",
        "10:01:01",
    ]
    assert [words_of(x) for x in (0.2, 59, 61, 7500)] == ["1 s", "59 s", "1 min", "2 h 5 min"]
    assert format_metrics({"ndcg@10": 0.04213}) == "percent: ndcg@10 4.21"
