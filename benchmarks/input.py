"""Measures the input of images, from a prepared dataset to the training loop.

python -m benchmarks.input [--images=DIR] [--count=1024] [--size=224] [--workers=0 --workers=2]
    [--threads=1 --threads=2]

Prepares images of a folder, or generated JPEG files of 400 x 300 pixels, once as they are and once
resized, and prints
  prepare: images written a second, on all cores.
  stages: microseconds for an image in one thread: reading the record, decoding it, everything else
    (copying into the batch, ids, slots); and the resulting images/s of one core.
  loop: images/s that arrive at an empty loop, by number of processes and threads that make batches;
    and the share of its time that a loop waits if a step takes twice as long as making a batch at
    that rate (as on a device, which needs no core of this machine).
"""

import csv
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.pipeline import TrainBatches
from pixelrec_jax.data.workers import iterate
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment

_IMAGES = program.define_path("images", "", "Folder, tar or zip of images; default generated ones.")
_COUNT = flags.DEFINE_integer("count", 1024, "Images to use at most.", lower_bound=64)
_SIZE = flags.DEFINE_integer("size", 224, "Pixels per side.", lower_bound=8)
_WORKERS = flags.DEFINE_multi_integer(
    "workers", [0, 1, 2], "Processes that make batches; 0 uses threads of the program."
)
_THREADS = flags.DEFINE_multi_integer("threads", [1, 2], "Threads in each process.")
_BATCHES = flags.DEFINE_integer("batches", 10, "Batches in a measurement.", lower_bound=2)
_ROOT = Path(__file__).parent.parent
_PREFETCH = 2
_HISTORY = 10


def draw(folder: Path, count: int) -> None:
    """Writes JPEG files of smooth noise, about as large as photographs of that size."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (38, 50, 3)).astype(np.uint8)
        image = Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC)
        image.save(folder / f"i{number}.jpg", quality=85)


def write_interactions(path: Path, item_ids: Sequence[str]) -> None:
    """Writes the interactions of users with ten items each; all items occur in order."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("item_id", "user_id", "timestamp"))
        for user in range(max(len(item_ids) // 2, 64)):
            chosen = rng.choice(len(item_ids), _HISTORY, replace=False)
            rows.writerows((item_ids[item], f"u{user}", time) for time, item in enumerate(chosen))


def open_batches(data: Path) -> TrainBatches:
    """Returns the training batches of SASRec on pixels."""
    config = load_config("pixelrec:user=sasrec,item=vit_toy,dataset=custom")
    config = config.unlock()
    config.dataset.path, config.item.image_size = str(data), _SIZE.value
    config.train.batch_size = 16
    return build_experiment(config).batches


def stages(batches: TrainBatches) -> dict[str, float]:
    """Returns the seconds for an image in one thread, by stage."""
    store = batches.store
    assert isinstance(store, ImageStore), "its model looks at images"
    seconds = dict.fromkeys(("read", "decode"), 0.0)
    ids = np.arange(1, store.num_items + 1)
    store.load(ids)  # the files are in memory now
    for item in ids:
        start = time.perf_counter()
        record = store.record(item)
        middle = time.perf_counter()
        assert record is not None, "every item has an image"
        store.pixels(record)
        seconds["read"] += middle - start
        seconds["decode"] += time.perf_counter() - middle
    seconds = {name: value / len(ids) for name, value in seconds.items()}
    start = time.perf_counter()
    images = sum(distinct(batches[index]) for index in range(_BATCHES.value))
    total = (time.perf_counter() - start) / images
    return {**seconds, "all else": total - sum(seconds.values()), "total": total}


def distinct(batch) -> int:
    """Returns the number of images in a batch."""
    return int(np.count_nonzero(batch.items.id))


def loop(batches: TrainBatches, workers: int, threads: int, step: float) -> tuple[float, float]:
    """Returns images/s, and the share of time that a loop with steps of so many seconds waits."""
    images, waited = 0, 0.0
    with iterate(
        batches,
        start=0,
        stop=_BATCHES.value + 1,
        workers=workers,
        threads=threads,
        prefetch=_PREFETCH,
    ) as iterator:
        next(iterator)  # processes have started
        begin = time.perf_counter()
        for _ in range(_BATCHES.value):
            start = time.perf_counter()
            batch = next(iterator)
            waited += time.perf_counter() - start
            images += distinct(batch)
            time.sleep(step)
    total = time.perf_counter() - begin
    return images / total, waited / total


def main(_: Sequence[str]) -> None:
    """Prints the three tables."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = Path(_IMAGES.value)
        if not _IMAGES.value:
            source = work / "images"
            source.mkdir()
            draw(source, _COUNT.value)
        item_ids = sorted(open_source(source).ids)[: _COUNT.value]
        if len(item_ids) < _HISTORY:
            raise UserError(
                f"--images={source} has {len(item_ids)} images; give {_HISTORY} or more"
            )
        write_interactions(work / "x.csv", item_ids)
        written = Table(
            "store", "images", "images/s", "KB an image", title="prepare", box=box.SIMPLE
        )
        one = Table("store", "read us", "decode us", "all else us", "images/s a core")
        one.title, one.box = "stages, one thread", box.SIMPLE
        many = Table("store", "processes", "threads", "images/s", "waiting with a step, percent")
        many.title, many.box = "loop", box.SIMPLE
        for kind in ("original", "resized"):
            start = time.perf_counter()
            out = work / kind
            size = _SIZE.value if kind == "resized" else None
            manifest = prepare(work / "x.csv", source, out, store=kind, image_size=size)
            count, seconds = manifest["counts"]["items"], time.perf_counter() - start
            size = sum(file["bytes"] for file in manifest["files"].values()) / count / 1e3
            written.add_row(kind, f"{count:,}", f"{count / seconds:,.0f}", f"{size:.0f}")
            batches = open_batches(out)
            by_stage = stages(batches)
            total = by_stage.pop("total")
            one.add_row(kind, *(f"{1e6 * x:.0f}" for x in by_stage.values()), f"{1 / total:,.0f}")
            for workers, threads in itertools.product(_WORKERS.value, _THREADS.value):
                setting = batches, workers, threads
                rate = loop(*setting, 0.0)[0]
                step = 2 * distinct(batches[0]) / rate
                waiting = loop(*setting, step)[1]
                many.add_row(
                    kind, str(workers), str(threads), f"{rate:,.0f}", f"{100 * waiting:.1f}"
                )
        for table in (written, one, many):
            Console().print(table)


if __name__ == "__main__":
    program.run(main)
