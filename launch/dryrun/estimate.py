"""Estimates the cost of a run on a TPU pod with the compiler, on a machine without TPUs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.stages import Lowered
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from pixelrec_jax.launch.dryrun import programs
from pixelrec_jax.launch.dryrun.known_failures import refuse_known_failure
from pixelrec_jax.launch.dryrun.roofline import DoesNotFitError, compile_and_count
from pixelrec_jax.launch.dryrun.stages import stage
from pixelrec_jax.system.console import render
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.state import state_template

DATASETS = ("pixel200k", "pixel1m", "pixel8m")
_SENT = {"sent": "", "sent_between_slices": " between slices"}
TRAIN, ENCODE, RANK = "train step", "encoding", "ranking"


def dry_run(
    config: ConfigDict,
    topology: str,
    *,
    slices: int = 1,
    examples_per_chip: int = 0,
    training_only: bool = False,
) -> dict[str, Any]:
    """Compiles the programs of a run for a pod and returns their costs in JSON types.

    Args:
      config: the config of the run.
      topology: the topology of each slice, as in "v5e:16x16".
      slices: number of slices.
      examples_per_chip: training examples of each data shard; 0 takes `train.batch_size`.
      training_only: whether to leave out the evaluation.

    Raises:
      UserError: wrong input.
    """
    with stage("describing the pod"):
        pod = programs.describe_pod(topology, slices=slices)
    refuse_known_failure(config, pod, examples_per_chip)
    with stage("building the model"):
        experiment = programs.experiment(config, pod, examples_per_chip=examples_per_chip)
        state, evaluator = state_template(experiment), experiment.evaluator
    batch_size = experiment.batches.batch_size
    with stage("tracing the programs"):
        lowered = {TRAIN: programs.lower_train_step(experiment, state)}
        if not training_only:
            lowered |= dict(zip((ENCODE, RANK), evaluator.lower(state.variables), strict=True))
    costs = {}
    for name, program in lowered.items():
        with stage(f"compiling {name}, {len(costs) + 1} of {len(lowered)}"):
            costs[name] = _measure(program, pod, pod.coordinates(experiment))
    result = {
        "user": config.user.name,
        "item": config.item.name,
        "dataset": config.dataset.name,
        "topology": topology,
        "slices": slices,
        "devices": len(pod.devices),
        "mesh": dict(experiment.mesh.shape),
        "hbm": pod.chip.hbm,
        "batch_size": batch_size,
        "microbatches": experiment.config.train.microbatches,
        "images_per_step": programs.images_per_step(experiment),
        "parameters": programs.bytes_per_device((state.trainable, state.frozen, state.model_state)),
        "optimizer": programs.bytes_per_device(state.opt_state),
        "programs": costs,
        "steps": {
            ENCODE: len(evaluator.source),
            RANK: math.ceil(len(experiment.split.users("test")) / evaluator.batch_size),
        },
    }
    if "seconds" in (train := result["programs"][TRAIN]):
        result["images_per_second"] = result["images_per_step"] / train["seconds"]
        result["hours_per_epoch"] = {
            name: train["seconds"] * programs.steps_per_epoch(config, name, batch_size) / 3600
            for name in DATASETS
        }
    return result


def _measure(lowered: Lowered, pod: programs.Pod, coordinates: Sequence) -> dict[str, Any]:
    try:
        cost = compile_and_count(lowered, pod.chip, coordinates=coordinates, slices=pod.slices)
    except DoesNotFitError as error:
        return {"fits": False, "peak": error.needed, "available": error.available}
    return {"fits": True, **cost.to_dict()}


def report(result: dict[str, Any]) -> str:
    """Returns a result as text."""
    mesh = " ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    count = result["microbatches"]
    pieces = f" in {count} microbatches" if count > 1 else ""
    lines = [
        f"{result['slices']} x {result['topology']}: {result['devices']} devices, mesh {mesh}",
        f"user={result['user']} item={result['item']} dataset={result['dataset']}: "
        f"{result['batch_size']:,} examples{pieces} and {result['images_per_step']:,} items a step",
        f"parameters {_gib(result['parameters'])} and optimizer {_gib(result['optimizer'])} of "
        f"{_gib(result['hbm'])} on each device",
        render([table(result["programs"])]),
    ]
    if "hours_per_epoch" in result:
        hours = ", ".join(f"{name} {h:.3g}" for name, h in result["hours_per_epoch"].items())
        lines.append(f"training: at most {result['images_per_second']:,.0f} items/s")
        lines.append(f"hours an epoch, at least: {hours}")
    for name, steps in result["steps"].items():
        if "seconds" in (cost := result["programs"].get(name, {})):
            lines.append(f"{name}: {steps:,} steps, at least {steps * cost['seconds']:.3g} s")
    return "\n".join(lines)


def table(costs: dict[str, dict[str, Any]]) -> Table:
    """Returns the costs of programs as a table with a column for each."""
    grid = Table("on each device", box=box.SIMPLE_HEAD)
    for name in costs:
        grid.add_column(name, justify="right")
    kinds = sorted(
        {(where, kind) for x in costs.values() for where in _SENT for kind in x.get(where, {})}
    )
    columns = [_column(cost, kinds) for cost in costs.values()]
    for label in max(columns, key=len):  # a program that fits has all labels
        grid.add_row(label, *(column.get(label, "-") for column in columns))
    return grid


def _column(cost: dict[str, Any], kinds: Sequence[tuple[str, str]]) -> dict[str, str]:
    if not cost["fits"]:
        return {"fits": f"no, of {_gib(cost['available'])}", "HBM peak": _gib(cost["peak"])}
    column = {
        "fits": "yes",
        "HBM peak": _gib(cost["peak"]),
        "HBM arguments": _gib(cost["arguments"]),
        "HBM temporaries": _gib(cost["temporary"]),
        "TFLOP": f"{cost['flops'] / 1e12:.3g}",
        "HBM traffic": _gib(cost["hbm_bytes"]),
    }
    for where, kind in kinds:
        column[f"{kind}{_SENT[where]}"] = f"{cost[where].get(kind, 0) / 2**20:.3g} MiB"
    for name, seconds in cost["times"].items():
        column[f"{name} time"] = f"{seconds * 1e3:.3g} ms"
    column["all at least"] = f"{cost['seconds'] * 1e3:.3g} ms"
    column["bound by"] = cost["bound_by"]
    column["MFU at most"] = f"{cost['mfu']:.0%}"
    return column


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def writable(option: str, name: str) -> Path:
    """Returns the path of a file to write, checked before the compilation takes minutes.

    Raises:
      UserError: it is a folder, or in a folder that does not exist.
    """
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--{option}={name} is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--{option}={name}: there is no folder {str(path.parent)!r}; create it")
    return path
