"""Measures speed, size, FLOPs and memory of every vision encoder on the present device.

python -m benchmarks.encoders [--items=clip_vit_b32,swin_t] [--batch=16] [--csv=encoders.csv]
    [--pytorch]

Weights and images are random, with the sizes and trainable blocks of the encoder's config. The
forward pass is that of evaluation, the backward pass that of training: only the trainable blocks
and the projection get gradients. Parameters are those of the backbone. The compiler counts FLOPs
(two per multiply-add) for one image. It counts the body of a loop once, and so leaves out most of
the kernel gradients of depthwise convolutions on CPU. Memory is the peak of a compiled pass without
its inputs.
--pytorch times the forward pass of the same network in PyTorch on CPU (requirements-test.txt).
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import seconds_per_call, stage
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.types import Items
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.recommender import Recommender, build_recommender, trainable_filter
from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.files import replaced_file
from pixelrec_jax.weights import partition

_CONFIG = Path(__file__).parent.parent / "configs" / "pixelrec.py"
_COLUMNS = {
    "encoder": "{}",
    "pixels": "{}",
    "parameters M": "{:.2f}",
    "trained": "{}",
    "trained M": "{:.2f}",
    "forward GFLOP": "{:.2f}",
    "training GFLOP": "{:.2f}",
    "forward images/s": "{:.1f}",
    "training images/s": "{:.1f}",
    "forward MiB": "{:.0f}",
    "training MiB": "{:.0f}",
}
_PYTORCH = {"PyTorch forward images/s": "{:.1f}", "ratio": "{:.2f}"}


def measure(name: str, *, batch: int, calls: int, trainable: str, dtype: str) -> dict[str, Any]:
    """Returns the measurements of one encoder.

    Args:
      name: name of the encoder.
      batch: images in a call.
      calls: number of timed calls; their median is taken.
      trainable: as `item.trainable`; empty for that of the config.
      dtype: dtype of activations.
    """
    config = load_config(f"{_CONFIG}:user=sasrec,item={name},dataset=pixel200k").unlock()
    config.item.dtype = dtype
    config.item.trainable = trainable or config.item.trainable
    model = build_recommender(config, num_items=batch + 1, num_users=2)
    size = config.item.image_size
    rng = np.random.default_rng(0)
    items = Items(
        id=jnp.arange(1, batch + 1)[None],
        image=jnp.asarray(rng.integers(0, 256, (1, batch, size, size, 3)), jnp.uint8),
        weight=jnp.ones((1, batch)),
    )
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), items.replace(weight=None), method="encode_items")
    )()
    state = {name: tree for name, tree in variables.items() if name != "params"}
    trained, frozen = partition.partition(variables["params"], trainable_filter(model))

    def forward(variables: dict, items: Items) -> jax.Array:
        return nn.apply(Recommender.encode_items, model)(variables, items)

    def training(trained: dict, frozen: dict, items: Items) -> Any:
        def loss(trained: dict) -> tuple[jax.Array, Any]:
            vectors, changed = model.apply(
                {"params": partition.merge(trained, frozen), **state},
                items,
                train=True,
                method="encode_items",
                mutable=list(state),
                rngs={"dropout": jax.random.key(0)},
            )
            return vectors.sum(), changed

        return jax.grad(loss, has_aux=True)(trained)

    # With constant images, the compiler would compute the result at compile time.
    passes = {
        "forward": (jax.jit(forward), (variables, items)),
        "training": (jax.jit(training), (trained, frozen, items)),
    }
    row = {
        "encoder": name,
        "pixels": size,
        "parameters M": _millions(variables["params"]["item_encoder"]["backbone"]),
        "trained": config.item.trainable,
        "trained M": _millions(trained["item_encoder"].get("backbone", {})),
    }
    for which, (function, arguments) in passes.items():
        compiled = function.lower(*arguments).compile()
        seconds = seconds_per_call(lambda c=compiled, a=arguments: c(*a), calls, warmup=1)
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        assert memory is not None, "CPUs, GPUs and TPUs tell it"
        assert cost is not None, "CPUs, GPUs and TPUs tell it"
        row[f"{which} GFLOP"] = cost["flops"] / batch / 1e9
        row[f"{which} images/s"] = batch / seconds
        row[f"{which} MiB"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
    return row


def _millions(params: dict) -> float:
    return sum(x.size for x in jax.tree.leaves(params)) / 1e6


def _define_flags() -> None:
    flags.DEFINE_list("items", None, "encoders to measure; default all")
    flags.DEFINE_integer("batch", 16, "images a call", lower_bound=1)
    flags.DEFINE_integer("calls", 3, "timed calls, after one to warm up", lower_bound=1)
    flags.DEFINE_string("trainable", "", "blocks to train, as item.trainable")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute type")
    flags.DEFINE_bool("pytorch", False, "compare with PyTorch on CPU")
    program.define_path("csv", None, "file that also gets the table")


def main(_: Sequence[str]) -> None:
    """Prints one row per encoder, and adds it to --csv at once."""
    values = flags.FLAGS
    names = values["items"].value or list(VISION_ENCODERS)
    for name in names:
        if name not in VISION_ENCODERS:
            raise UserError(f"--items: unknown encoder {name!r}{nearest(name, VISION_ENCODERS)}")
    if values.csv and not Path(values.csv).absolute().parent.is_dir():
        raise UserError(f"--csv={values.csv}: its folder does not exist; make it first")
    device = jax.devices()[0]
    columns = _COLUMNS | (_PYTORCH if values.pytorch else {})
    table = Table(
        *columns,
        box=box.SIMPLE,
        title=f"{device.device_kind}, jax {jax.__version__}, {values.dtype}, {values.batch} images",
    )
    rows = []
    for name in names:
        with stage(name):
            row = measure(
                name,
                batch=values.batch,
                calls=values.calls,
                trainable=values.trainable,
                dtype=values.dtype,
            )
            if values.pytorch:
                row |= _compare(row, batch=values.batch, calls=values.calls)
        rows.append(row)
        cells = (columns[key].format(row[key]) if key in row else "" for key in columns)
        table.add_row(*cells)
        if values.csv:
            with replaced_file(Path(values.csv)) as path, path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(rows)
    Console(width=180).print(table)


def _compare(row: dict[str, Any], *, batch: int, calls: int) -> dict[str, float]:
    from benchmarks import pytorch

    if row["encoder"] not in pytorch.MODULES:
        return {}
    call = pytorch.forward(row["encoder"], batch=batch, size=row["pixels"])
    rate = batch / seconds_per_call(call, calls, warmup=1)
    return {"PyTorch forward images/s": rate, "ratio": row["forward images/s"] / rate}


if __name__ == "__main__":
    _define_flags()
    program.run(main)
