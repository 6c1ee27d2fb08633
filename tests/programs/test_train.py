"""The program from its command line: flags, files it writes, and its one-line errors."""

import csv
import json
import math
import re
import sys

import polars as pl
import pytest

from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.runs import report
from pixelrec_jax.runs.run_folder import MetricsLog
from pixelrec_jax.system.errors import UserError, nearest
from tests import subprocesses
from tests.tiny import ROOT

CONFIG = f"--config={ROOT / 'configs' / 'pixelrec.py'}:user=sasrec,item=id,dataset=toy"


def run(*arguments, module="train"):
    argv = [sys.executable, "-m", f"pixelrec_jax.programs.{module}", *map(str, arguments)]
    return subprocesses.run(argv, cwd=ROOT)


@pytest.fixture(scope="module")
def finished(toy_dataset, tmp_path_factory):
    """A run from the command line, and the process that made it."""
    workdir = tmp_path_factory.mktemp("train") / "run"
    options = [f"--config.dataset.path={toy_dataset}", "--config.width=16"]
    options += ["--config.train.epochs=2", "--config.train.log_every=1"]
    return workdir, run(CONFIG, f"--workdir={workdir}", *options)


def test_a_run_prints_its_table_and_fills_its_workdir(finished, toy_dataset):
    workdir, process = finished
    assert process.returncode == 0, process.stderr
    for expected in ("random", "popularity", "sasrec, item=id", "ndcg@10", "60 users"):
        assert expected in process.stdout
    assert "images/s" not in process.stderr  # an id model sees none
    config = json.loads((workdir / "config.json").read_text())
    assert config["width"] == 16
    assert config["dataset"]["path"] == str(toy_dataset)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records
    for name in ("loss", "lr", "visual_lr", "gradient_norm", "update_norm"):
        assert all(math.isfinite(record[f"train/{name}"]) for record in records), name
    assert sum("valid/ndcg@10" in record for record in records) == 2
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    result = json.loads((workdir / "result.json").read_text())
    estimate = result["test"]["model"]["all"]["recall@10"]
    assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert result["test"]["users"]["all"] == 60


def test_top_lists_are_unseen_items_in_order(finished, toy_dataset):
    workdir, _ = finished
    table = pl.read_parquet(workdir / "test_top_k.parquet")
    data = load_interactions(toy_dataset)
    assert table.columns == ["user_id", "rank", "item_id", "score"]
    assert table.height == 60 * 10
    users, items = data.user_ids(), data.item_ids()
    for user in (0, 31, 59):
        rows = table.filter(pl.col("user_id") == users[user])
        assert rows["rank"].to_list() == list(range(1, 11))
        assert rows["score"].is_sorted(descending=True)
        history = data.items[data.offsets[user + 1] : data.offsets[user + 2] - 1]
        assert not set(rows["item_id"]) & set(items.gather(history - 1))


def test_evaluating_needs_the_workdir_only(finished):
    workdir, first = finished
    again = run("--mode=evaluate", f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_runs_are_compared_side_by_side(finished):
    workdir, _ = finished
    process = run(workdir, workdir, "--examples=3", module="report")
    assert process.stdout.count(f"sasrec, item=id ({workdir})") == 6  # two runs: all, cold, sizes
    assert len(re.findall("^user ", process.stdout, re.MULTILINE)) == 2 * 3
    assert run(module="report").stderr.startswith("error: WORKDIR [WORKDIR ...] is missing")
    assert "holds no result.json" in run(workdir.parent, module="report").stderr


def test_reports_in_other_forms_have_the_same_numbers(finished):
    workdir, _ = finished
    metrics = json.loads((workdir / "result.json").read_text())["test"]["model"]["all"]
    text = report.table([workdir, workdir], form="csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2 * 4  # all and cold: random, popularity and two runs
    run = next(row for row in rows if str(workdir) in row["run"] and row["targets"] == "all")
    for name, estimate in metrics.items():
        assert float(run[f"{name} (%)"]) == pytest.approx(100 * estimate["value"], abs=1e-4)
        assert float(run[f"{name} high (%)"]) == pytest.approx(100 * estimate["high"], abs=1e-4)
    percent = f"{100 * metrics['ndcg@10']['value']:.2f} "
    for form in ("text", "markdown", "latex"):
        assert percent in report.table([workdir], form=form)
    assert report.FORMATS.keys() == {"text", "markdown", "latex", "csv"}


def test_the_end_says_where_the_results_are(finished):
    workdir, process = finished
    for path in (f"{workdir}/result.json", f"--logdir={workdir}", f"report {workdir} --examples=3"):
        assert path in process.stdout
    assert (workdir / "test_top_k.parquet").exists()


def test_runs_without_a_result_have_a_row_if_asked_for(finished, tmp_path):
    workdir, _ = finished
    table = report.table([tmp_path, workdir], unfinished=True)
    parameters = json.loads((workdir / "result.json").read_text())["model"]["parameters"]
    for rows in table.split("cold targets"):
        assert rows.index(f"no result yet ({tmp_path})") < rows.index(f"item=id ({workdir})")
    assert re.search(rf"item=id \({workdir}\) +{parameters / 1e6:.2f} ", table)
    with pytest.raises(UserError, match="holds no result"):
        report.table([tmp_path, workdir])
    with pytest.raises(UserError, match="none of the 1 runs has a result yet"):
        report.table([tmp_path], unfinished=True)


def test_runs_on_different_data_or_splits_are_not_compared(finished, tmp_path):
    workdir, _ = finished
    result = json.loads((workdir / "result.json").read_text())
    assert result["split"] == {"name": "leave_one_out"}
    by_time = {"name": "global_time", "valid_from": 5, "test_from": 9}
    for other in (
        result | {"test": result["test"] | {"items": 99}},
        result | {"split": by_time},
    ):
        (tmp_path / "result.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match="different data, or with other splits"):
            report.table([workdir, tmp_path])


WRONG = [
    ([CONFIG, "--config.optim.lrr=1"], "no key 'optim.lrr'; did you mean 'optim.lr'?"),
    ([CONFIG, "--config.epochs=1"], "no key 'epochs'; did you mean 'train.epochs'?"),
    ([CONFIG, "--config.optim.lr=fast"], "--config.optim.lr=fast"),
    ([CONFIG.replace("sasrec", "sasrek")], "unknown user='sasrek'; did you mean 'sasrec'?"),
    ([CONFIG.replace("user=", "usr=")], "unknown word 'usr=sasrec'; did you mean 'user'?"),
    ([CONFIG.replace("pixelrec.py", "pixelrek.py")], "pixelrek.py' does not exist; give"),
    ([CONFIG, "--config.dataset.path=nowhere"], "'nowhere' is not a prepared dataset"),
    ([CONFIG, "--config.train.batch_size=0"], "train.batch_size=0; expected 1 or more"),
    ([CONFIG, "--config.optim.lr=nan"], "optim.lr=nan; expected a finite number"),
    ([CONFIG, "--config.eval.ks=abc"], "expected whole numbers"),
    ([CONFIG, "--config.seed=-1"], "seed=-1; expected 0 or more"),
    ([CONFIG, "--config.user.heads=3"], "width=64 is not divisible by user.heads=3"),
    ([CONFIG, "--config.dataset.split.name=global_time"], "give the word split=global_time"),
    ([f"{CONFIG},split=globaltime"], "unknown split='globaltime'; did you mean 'global_time'?"),
    ([f"{CONFIG},split=global_time", "--config.dataset.split.test_from=0.7"], "in this order"),
    ([CONFIG, "--config.mesh.data=3"], "does not cover the"),
    ([CONFIG, "--config.eval.monitor=ndcg@7"], "eval.monitor='ndcg@7'; expected one of"),
    ([], "holds no run (no config.json); give --config to start one"),
    ([f"--config={ROOT}/README.md"], "README.md' is not a config (SyntaxError"),
    ([CONFIG, "--config="], "--config is empty; give pixelrec:words"),
    ([CONFIG, "--config.nouser.x"], "no key 'nouser.x'; its sections and keys are data,"),
    ([CONFIG, "--config.split.x=1"], "no key 'split.x'; its sections and keys are data,"),
    ([CONFIG, "--flagfile=/nowhere"], "Unable to open flagfile: [Errno 2] No such file"),
    ([CONFIG, "--config.user.name=mf"], "user.name=mf does not take user.dropout"),
    ([CONFIG, "--config.seed=12345678901234567890"], "expected at most 2147483647"),
    ([CONFIG, "--config.train.batch_size=99999999"], "99999999 is more than the 74 examples"),
    ([CONFIG, "--workdirr=x"], "Unknown command line flag 'workdirr'"),
    ([CONFIG, "stray"], "unexpected argument 'stray'"),
]


@pytest.fixture(scope="module")
def refused(toy_dataset, tmp_path_factory):
    """What became of each of the wrong command lines, and the folder of their workdirs."""
    folder, workdirs = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("wrong")
    lists = [
        [
            f"--workdir={workdirs}/{number}",
            *arguments[:1],
            *([f"--config.dataset.path={toy_dataset}"] if arguments else []),
            *arguments[1:],
        ]
        for number, (arguments, _) in enumerate(WRONG)
    ]
    return subprocesses.run_each("pixelrec_jax.programs.train", lists, folder, cwd=ROOT), workdirs


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_input_is_one_line_and_leaves_nothing(refused, number):
    ended, workdirs = refused
    process, (_, message) = ended[number], WRONG[number]
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1, process.stderr
    assert process.stderr.startswith("error: ")
    assert message in process.stderr
    assert not (workdirs / str(number)).exists()


def test_nearest():
    assert nearest("ndcg", ["recall", "ndcg@10"]) == "; did you mean 'ndcg@10'?"
    assert nearest("lr", ["optim.lr", "seed"]) == "; did you mean 'optim.lr'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


def test_trainable_blocks():
    blocks = ("stem", "block_0", "block_1", "block_2")
    assert resolve_trainable("all", blocks) == blocks
    assert resolve_trainable("none", blocks) == ()
    assert resolve_trainable("last:2", blocks) == ("block_1", "block_2")
    assert resolve_trainable("last:2", (*blocks, "norm")) == ("block_1", "block_2", "norm")
    assert resolve_trainable("block_2,stem", blocks) == ("stem", "block_2")
    assert resolve_trainable(["block_1"], blocks) == ("block_1",)
    with pytest.raises(UserError, match="unknown block 'blok_1'; did you mean 'block_1'"):
        resolve_trainable("blok_1", blocks)
    with pytest.raises(UserError, match="the encoder has 4 blocks"):
        resolve_trainable("last:5", blocks)


def test_metrics_log_drops_what_will_be_done_again(tmp_path):
    with MetricsLog(tmp_path, continue_from=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    with MetricsLog(tmp_path, continue_from=2) as log:
        log.write(3, {"train/loss": 30.0})
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["train/loss"]) for r in steps] == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.parametrize("from_workdir", [False, True])
def test_describe_prints_the_config_and_stops(finished, toy_dataset, from_workdir):
    workdir, _ = finished
    given = f"--workdir={workdir}" if from_workdir else CONFIG
    override = [] if from_workdir else [f"--config.dataset.path={toy_dataset}"]
    files = sorted(workdir.rglob("*"))
    done = run("--mode=describe", given, *override)
    assert done.returncode == 0, done.stderr
    assert f"\nwidth = {16 if from_workdir else 64} " in done.stdout
    assert f"  # {meaning('optim.lr')}\n" in done.stdout
    assert "\nmodel: sasrec with item=id\n" in done.stdout
    assert sorted(workdir.rglob("*")) == files


@pytest.mark.parametrize(
    ("module", "name", "function"),
    [
        ("pixelrec_jax.training", "train", "evaluate"),
        ("pixelrec_jax.configs", "loading", "load_config"),  # while the flags are parsed
    ],
)
def test_sigterm_outside_of_training_ends_as_an_interrupt(tmp_path, module, name, function):
    program = f"""
import os, runpy, signal, time
from {module} import {name}
def ended(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
{name}.{function} = ended
runpy.run_module("pixelrec_jax.programs.train", run_name="__main__")
"""
    config = "--config=pixelrec:user=mf,item=id,dataset=toy"
    argv = [sys.executable, "-c", program, config, f"--workdir={tmp_path}", "--mode=evaluate"]
    done = subprocesses.run(argv, cwd=ROOT)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted; start the same command again to continue\n"
