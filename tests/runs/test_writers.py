"""Trackers get the records of metrics.jsonl, and a restart continues the same run there."""

import json
import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event

from pixelrec_jax.runs.run_folder import MetricsLog
from pixelrec_jax.runs.writers import TensorBoard, check_writers
from pixelrec_jax.system.errors import TransientError, UserError


class _WandbRun:
    def __init__(self, id_, calls):
        self.id, self._calls = id_, calls

    def define_metric(self, name, *, step_metric):
        self._calls.append(("define", name, step_metric))

    def log(self, values):
        self._calls.append(("log", values))

    def finish(self, *, exit_code):
        self._calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch):
    module, module.calls = ModuleType("wandb"), []

    def init(**options):
        module.calls.append(("init", options))
        return _WandbRun(options["id"] or "new", module.calls)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    module, module.calls = ModuleType("mlflow"), []
    module.exceptions = SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))

    def start_run(*, run_id, run_name):
        module.calls.append(("start", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    module.start_run = start_run
    module.log_params = lambda params: module.calls.append(("params", params))
    module.log_metrics = lambda values, *, step: module.calls.append(("log", step, values))
    module.end_run = lambda status: module.calls.append(("end", status))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def _config(*writers):
    return ConfigDict({"log": {"writers": writers}, "optim": {"lr": 0.1}})


def test_weights_and_biases_gets_every_record(tmp_path, wandb):
    with MetricsLog(tmp_path, continue_from=0, config=_config("wandb")) as log:
        log.write(1, {"train/loss": 0.5})
    (_, options), *rest = wandb.calls
    assert options["name"] == tmp_path.name
    assert options["config"]["optim"] == {"lr": 0.1}
    assert rest == [
        ("define", "*", "step"),
        ("log", {"step": 1, "train/loss": 0.5}),
        ("finish", 0),
    ]


def test_mlflow_gets_every_record(tmp_path, mlflow):
    with MetricsLog(tmp_path, continue_from=0, config=_config("mlflow")) as log:
        log.write(1, {"valid/ndcg@10": 0.5})
    assert mlflow.calls == [
        ("start", None, tmp_path.name),
        ("params", {"log.writers": ("mlflow",), "optim.lr": 0.1}),
        ("log", 1, {"valid/ndcg_at_10": 0.5}),
        ("end", "FINISHED"),
    ]


def test_a_restart_continues_the_runs_of_the_trackers(tmp_path, wandb, mlflow):
    config = _config("wandb", "mlflow")
    with pytest.raises(KeyError), MetricsLog(tmp_path, continue_from=0, config=config):
        raise KeyError
    assert ("finish", 1) in wandb.calls
    assert ("end", "FAILED") in mlflow.calls
    wandb.calls.clear(), mlflow.calls.clear()
    with MetricsLog(tmp_path, continue_from=0, config=config):
        pass
    assert wandb.calls[0][1]["id"] == "new"
    assert mlflow.calls == [("start", "new", tmp_path.name), ("end", "FINISHED")]


def test_a_server_that_fails_ends_the_run_in_one_line_that_launchers_repeat(tmp_path, mlflow):
    def fail(values, *, step):
        raise mlflow.exceptions.MlflowException("503\nno server")

    mlflow.log_metrics = fail
    with (
        pytest.raises(TransientError, match=r"MLflow failed .*503 no server.*start the same"),
        MetricsLog(tmp_path, continue_from=0, config=_config("mlflow")) as log,
    ):
        log.write(1, {"train/loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 0.5}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'pixelrec_jax\[{name}\]'"):
        check_writers([name])


def test_a_command_line_names_writers_by_commas(wandb, mlflow):
    assert check_writers(("wandb,mlflow",)) == check_writers(("wandb", "mlflow"))


def test_an_unknown_writer_is_an_error():
    with pytest.raises(UserError, match="unknown writer 'wandbb'; did you mean 'wandb'"):
        check_writers(["wandbb"])


def test_the_log_tells_which_records_it_found(tmp_path):
    with MetricsLog(tmp_path, continue_from=0) as log:
        assert log.kept == log.dropped == {}
        for step in (1, 2, 3, 4):
            log.write(step, {"time/total": float(step)})
    with MetricsLog(tmp_path, continue_from=2) as log:
        assert log.kept == {"step": 2, "time/total": 2.0}
        assert log.dropped == {"step": 4, "time/total": 4.0}


def test_tensorboard_has_the_names_of_metrics(tmp_path):
    board = TensorBoard(tmp_path, continue_from=0)
    board.write(7, {"valid/ndcg@10": 0.25, "train/loss": 1.5})
    board.close(failed=False)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, tags, place = path.read_bytes(), {}, 0
    while place < len(data):  # a record: its length, a checksum, the event, a checksum
        (size,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + size])
        tags |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        place += 16 + size
    assert tags == {("valid/ndcg@10", 7): 0.25, ("train/loss", 7): 1.5}
