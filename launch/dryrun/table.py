"""Dry runs of many configs on many pods, as a Markdown table.

A compilation takes minutes, so that every result is added to a file at once, as one line.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import SHIPPED, load_config
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.launch.dryrun.estimate import TRAIN, dry_run
from pixelrec_jax.launch.dryrun.roofline import CompilerError
from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError, reason


class Case(NamedTuple):
    """A config on a pod: the words of the config, overrides by dotted key, and the batch."""

    words: str
    topology: str
    overrides: dict[str, Any]
    examples_per_chip: int

    @property
    def key(self) -> str:
        """A text that identifies the case."""
        return json.dumps(self, sort_keys=True)

    @property
    def item(self) -> str:
        """The item encoder."""
        found = re.search(r"item=(\w+)", self.words)
        assert found is not None, f"a setting names an item encoder, {self.words!r} does not"
        return found[1]

    def config(self) -> ConfigDict:
        """Returns the config."""
        return load_config(f"{SHIPPED}:{self.words}").copy_and_resolve_references()


def encoders() -> Iterator[Case]:
    """Yields SASRec with every encoder as in the paper, in bfloat16, on four pods."""
    for topology in ("v5e:2x4", "v5e:16x16", "v5p:4x4x4", "v6e:8x8"):
        for item in VISION_ENCODERS:
            words = f"user=sasrec,item={item},dataset=pixel200k"
            yield Case(words, topology, {"item.dtype": "bfloat16"}, 64)


def mf_pixel8m() -> Iterator[Case]:
    """Yields MF with D = 4096 on Pixel8M: 425 GiB of tables and moments, the paper's batch size."""
    for name, shapes in {"v5e": ("4x4", "4x8", "8x8"), "v5p": ("2x2x1", "2x2x2", "2x2x4")}.items():
        for shape in shapes:
            chips = Slice.parse(f"{name}:{shape}").chips
            words = "user=mf,item=id,dataset=pixel8m"
            yield Case(words, f"{name}:{shape}", {"mesh.fsdp": chips}, 512 // chips)


STUDIES: dict[str, Callable[[], Iterator[Case]]] = {
    study.__name__: study for study in (encoders, mf_pixel8m)
}


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Returns the results in a file by the key of the case; {} if the file does not exist."""
    if not results.exists():
        return {}
    try:
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        return {line["case"]: line["result"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{results} is not a file of results ({reason(error)}); remove it or its last line"
        ) from None


def measure(case: Case, results: Path) -> dict[str, Any]:
    """Compiles the train step of a case; returns its cost and appends it to the file."""
    config = case.config().unlock()
    config.update_from_flattened_dict(case.overrides)
    try:
        result = dry_run(
            config, case.topology, examples_per_chip=case.examples_per_chip, training_only=True
        )
    except CompilerError as error:
        result = {"error": str(error)}
    with results.open("a") as file:
        file.write(json.dumps({"case": case.key, "result": result}) + "\n")
    return result


COLUMNS = (
    *("pod", "item", "a chip", "fits", "peak GiB", "TFLOP"),
    *("compute ms", "HBM ms", "ICI ms", "bound", "MFU ≤", "items/s ≤", "h an epoch ≥"),
)


def row(case: Case, result: dict[str, Any]) -> list[str]:
    """Returns the cells of `COLUMNS` for a result."""
    chips = Slice.parse(case.topology).chips
    head = [f"{case.topology} ({chips})", f"`{case.item}`", f"{case.examples_per_chip}"]
    if "error" in result:
        return [*head, "compiler error", *["-"] * 9]
    train = result["programs"][TRAIN]
    peak = f"{train['peak'] / 2**30:.1f}"
    if not train["fits"]:
        return [*head, f"no, {train['available'] / 2**30:.1f}", peak, *["-"] * 8]
    return [
        *head,
        "yes",
        peak,
        _short(train["flops"] / 1e12),
        *(_short(train["times"][name] * 1e3) for name in ("compute", "HBM", "ICI")),
        train["bound_by"],
        f"{train['mfu']:.0%}",
        f"{result['images_per_second']:,.0f}",
        f"{result['hours_per_epoch'][result['dataset']]:.2g}",
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
