"""Measures preparing interactions of PixelRec's full size, and opening them for training.

python -m benchmarks.prepare --dir=DIR [--users=N] [--items=N] [--interactions=N]

Writes a CSV with the size and shape of PixelRec into DIR, unless it exists: long-tail items,
sessions of 6 to 434, interactions in order of time. Then, each in its own process:
  prepare: pixelrec prepare without images.
  open: loading the result, checking its hashes, and making the first batch of SASRec on ids.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import stage
from pixelrec_jax.launch.dryrun.programs import random_items
from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError

_DIR = program.define_path("dir", None, "Folder of the generated file.", required=True)
_USERS = flags.DEFINE_integer("users", 30_000_000, "Users.", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", 408_374, "Items.", lower_bound=1)
_INTERACTIONS = flags.DEFINE_integer("interactions", 200_000_000, "Interactions.", lower_bound=6)
_LEAST, _MOST = 6, 434  # interactions of a user of PixelRec
_ROWS = 5_000_000  # written at once

_OPEN = """
from absl import flags
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.training.experiment import build_experiment
import sys
flags.FLAGS.mark_as_parsed()
config = load_config("pixelrec:user=sasrec,item=id,dataset=custom").unlock()
config.dataset.path = sys.argv[1]
build_experiment(config).batches[0]
"""


def write_interactions(path: Path, users: int, items: int, interactions: int) -> None:
    """Writes a CSV of random interactions; their number is right on average."""
    rng = np.random.default_rng(0)
    # Half of the users have the least length, the others have a long tail.
    mean = max(interactions / users - _LEAST, 0)
    extra = rng.pareto(2.0, users) * mean * (rng.random(users) < 0.5) * 2
    length = np.minimum(_LEAST + extra + rng.random(users), _MOST).astype(np.int64)
    user = np.repeat(np.arange(users, dtype=np.int32), length)
    rng.shuffle(user)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(b"item_id,user_id,timestamp\n")
        for start in range(0, len(user), _ROWS):
            chunk = user[start : start + _ROWS]
            frame = pl.DataFrame(
                {
                    "item": random_items(rng, len(chunk), items),
                    "user": chunk,
                    "time": 1_500_000_000 + np.arange(start, start + len(chunk)) // 2,
                }
            )
            columns = pl.format("i{}", "item"), pl.format("u{}", "user"), "time"
            frame.select(*columns).write_csv(file, include_header=False)
    partial.rename(path)


def _measure(command: Sequence[str]) -> tuple[float, float]:
    """Runs a program; returns its seconds and its peak memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{' '.join(command[:4])} ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def main(_: Sequence[str]) -> None:
    """Prints seconds and peak memory of both programs."""
    folder = Path(_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    csv = folder / f"{_USERS.value}-{_ITEMS.value}-{_INTERACTIONS.value}.csv"
    if not csv.exists():
        write_interactions(csv, _USERS.value, _ITEMS.value, _INTERACTIONS.value)
    out = folder / f"prepared-{os.getpid()}"
    prepare = [sys.executable, "-m", "pixelrec_jax.programs.prepare"]
    table = Table("program", "seconds", "peak GB", box=box.SIMPLE)
    try:
        for name, command in (
            ("prepare", [*prepare, f"--interactions={csv}", f"--out={out}"]),
            ("open", [sys.executable, "-c", _OPEN, str(out)]),
        ):
            with stage(name):
                seconds, memory = _measure(command)
            table.add_row(name, f"{seconds:.1f}", f"{memory:.1f}")
    finally:
        shutil.rmtree(out, ignore_errors=True)
    Console().print(table)


if __name__ == "__main__":
    program.run(main)
