"""Compares an epoch of SASRec on ids with that of the PyTorch reference, on CPU.

python -m benchmarks.reference [--items=2000,10000,96282] [--users=512] [--rounds=3] [--steps=5]

Settings are those of the paper: D = 512, 64 windows a batch, 10 items of history. Both programs
train on the same random interactions, each in its own process. They take turns, so that other load
of the machine affects both; medians of the rounds are taken. A ratio is PyTorch's time divided by
ours.
  threads, workers: PyTorch's for computing and for making batches. The reference sets 1 and 10.
  step: a training step on a batch that is ready.
  start: time until the first batch of an epoch; the reference starts its workers again.
  loop: a step of the rest of the epoch, including its batch, the loop and its messages.
  epoch: the whole epoch; validation: ranking the catalogue for every user.
First, the PyTorch model must reproduce the reference's own losses around an AdamW step, which are
in tests/golden; tests/test_golden.py checks our model against them. Needs requirements-test.txt.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.synthetic import random_interactions
from benchmarks.timing import Epoch
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.workers import iterate
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.runs.progress import Speed
from pixelrec_jax.system import program
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.step import make_train_step

_ROOT = Path(__file__).parent.parent
_ITEMS = flags.DEFINE_list("items", ["2000", "10000", "96282"], "Catalogue sizes.")
_USERS = flags.DEFINE_integer("users", 512, "Users, of 20 interactions on average.", lower_bound=64)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each program.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of a turn on a batch that is ready.")

_REFERENCE = {"threads": 1, "workers": 10}  # as its authors run it; 0 threads is the default
_PYTORCH = (*({"threads": 0, "workers": n} for n in (0, 2, 10)), _REFERENCE)
_COLUMNS = ("program", "threads", "workers", "step ms", "ratio", "start s", "loop ms", "ratio")
_COLUMNS += ("epoch s", "ratio", "validation s", "ratio")


class Ours:
    """The steps of an epoch of this package."""

    def __init__(self, users: int, items: int):
        """Builds the model for random interactions of this size."""
        flags.FLAGS.mark_as_parsed()  # grain reads them
        config = load_config("pixelrec:user=sasrec,item=id,dataset=pixel200k").unlock()
        config.eval.batch_size = min(config.eval.batch_size, users)
        self.experiment = build_experiment(config, interactions=random_interactions(users, items))
        self.state, self.step = init_state(self.experiment), 0
        self.train_step = make_train_step(self.experiment)

    def _train(self, batch: Any) -> jax.Array:
        batch = make_global_arrays(batch, self.experiment.mesh, BATCH_SPEC)
        self.state, metrics = self.train_step(self.state, batch, self.experiment.resident)
        return metrics["loss"]

    def steps(self, count: int) -> list[float]:
        """Returns the seconds of each of `count` steps on a batch that is ready."""
        batch, seconds = self.experiment.batches[0], []
        for _ in range(count):
            start = time.perf_counter()
            jax.block_until_ready(self._train(batch))
            seconds.append(time.perf_counter() - start)
        return seconds

    def epoch(self) -> Epoch:
        """Times the next epoch."""
        batches, data = self.experiment.batches, self.experiment.config.data
        stop = self.step + batches.steps_per_epoch
        begin, first, speed, previous = time.perf_counter(), 0.0, Speed(), None
        with (
            progress_bar("training", batches.steps_per_epoch) as advance,
            iterate(
                batches,
                start=self.step,
                stop=stop,
                workers=data.workers,
                threads=data.threads,
                prefetch=data.prefetch,
            ) as iterator,
        ):
            for local in iterator:
                first = first or time.perf_counter() - begin
                loss = self._train(local)
                jax.block_until_ready(previous)
                previous = loss
                self.step += 1
                speed.count(local)
                advance(1)
            jax.block_until_ready(previous)
        return Epoch(batches.steps_per_epoch, first, time.perf_counter() - begin)

    def validation(self) -> float:
        """Returns the seconds of ranking all users."""
        start = time.perf_counter()
        self.experiment.evaluator.rank(self.state.variables, "valid")
        return time.perf_counter() - start


def _reference(users: int, items: int) -> Any:
    from benchmarks import pytorch_sasrec

    warnings.filterwarnings("ignore", "This DataLoader will create 10 worker processes")
    pytorch_sasrec.check(np.load(_ROOT / "tests" / "golden" / "SASRec.npz"))
    interactions = random_interactions(users, items)
    sequences = np.split(interactions.items, interactions.offsets[2:-1])
    return pytorch_sasrec.Training([x.tolist() for x in sequences], interactions.num_items)


@contextmanager
def _process(build: Callable[[], Any]) -> Generator[Callable[..., Any]]:
    """Yields a function that calls methods, by name, of an object built in another process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, build))
    process.start()
    there.close()

    def call(method: str, **options: Any) -> Any:
        here.send((method, options))
        return here.recv()

    try:
        yield call
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, build: Callable[[], Any]) -> None:
    target = build()
    while True:
        try:
            method, options = connection.recv()
        except EOFError:
            return
        connection.send(getattr(target, method)(**options))


def measure(users: int, items: int, *, rounds: int, steps: int) -> list[dict[str, float]]:
    """Returns the measurements of our program and of every setting of PyTorch."""
    with (
        _process(partial(Ours, users, items)) as ours,
        _process(partial(_reference, users, items)) as pytorch,
    ):
        calls = [ours]
        for setting in _PYTORCH:
            calls.append(partial(pytorch, **setting))
        for call in calls:  # compile, and touch all memory
            call("steps", count=2)
            call("validation")
        turns: list[list[dict]] = [[] for _ in calls]
        for _ in range(rounds):
            for call, results in zip(calls, turns, strict=True):
                step = float(np.median(call("steps", count=steps)))
                epoch = call("epoch")
                results.append(
                    {
                        "step ms": 1e3 * step,
                        "start s": epoch.start,
                        "loop ms": 1e3 * (epoch.total - epoch.start) / epoch.steps,
                        "epoch s": epoch.total,
                        "validation s": call("validation"),
                    }
                )
    return [
        {name: float(np.median([turn[name] for turn in results])) for name in results[0]}
        for results in turns
    ]


def main(_: Sequence[str]) -> None:
    """Prints one table per catalogue size."""
    for items in map(int, _ITEMS.value):
        rows = measure(_USERS.value, items, rounds=_ROUNDS.value, steps=_STEPS.value)
        title = f"{items:,} items, {_USERS.value:,} users"
        table = Table(*_COLUMNS, box=box.SIMPLE, title=title)
        names = ["pixelrec_jax", *["PyTorch"] * len(_PYTORCH)]
        for name, setting, row in zip(names, ({}, *_PYTORCH), rows, strict=True):
            cells = [name, str(setting.get("threads") or "all"), str(setting.get("workers", ""))]
            for key, value in row.items():
                cells.append(f"{value:.1f}" if key.endswith("ms") else f"{value:.2f}")
                if key != "start s":
                    cells.append(f"{value / rows[0][key]:.2f}")
            table.add_row(*cells)
        Console(width=140).print(table)


if __name__ == "__main__":
    program.run(main)
