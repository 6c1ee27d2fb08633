"""The folder of a run: resolved config, metrics (JSON lines, TensorBoard), result, top lists."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.errors import UserError
from pixelrec_jax.evaluate import Ranking

# Keys that say how fast a run goes and not what it computes; they may change when it continues.
_SPEED_ONLY = ("data.workers", "data.threads", "data.prefetch")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is either the old one or the complete new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def to_json(config: ConfigDict) -> dict:
    """Returns the config as JSON types (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config into a new workdir, or checks that the old one is the same.

    Raises:
      UserError: the workdir holds another config; the message names the keys that differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, to_json(config))
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be written ({error.strerror})") from error
        return
    there, here = flatten(read_config(workdir).to_dict()), flatten(to_json(config))
    differing = [
        f"{key}={there.get(key)!r} there, {here.get(key)!r} given"
        for key in sorted({**there, **here})
        if there.get(key) != here.get(key) and key not in _SPEED_ONLY
    ]
    if differing:
        shown = "; ".join(differing[:4]) + (" ..." if differing[4:] else "")
        raise UserError(
            f"--workdir={workdir} holds a run with another config ({shown}); give another workdir, "
            "or the same config to continue that run"
        )
    write_json(path, to_json(config))


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config that a workdir holds.

    Raises:
      UserError: the folder is not a workdir.
    """
    path = workdir / "config.json"
    try:
        return ConfigDict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"--workdir={workdir} holds no run (no config.json); give --config to start one"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove the folder and start again"
        ) from None


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted key, as in "optim.lr"."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


class MetricsLog:
    """Scalars by step, in metrics.jsonl and as TensorBoard events; use as a context manager."""

    def __init__(self, workdir: Path, *, continue_from: int):
        """Args: records after step `continue_from` are dropped: that part of the run is redone."""
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # a line cut short when the run was killed
                    continue
                if record["step"] <= continue_from:
                    kept.append(line + "\n")
        temporary = path.with_name("metrics.jsonl.tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=continue_from + 1, write_to_disk=True
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one record."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)


def write_recommendations(workdir: Path, interactions: Interactions, ranking: Ranking) -> None:
    """Writes recommendations.parquet: user_id, rank (1 = best), item_id, score; original ids."""
    user_ids, item_ids = interactions.user_ids(), interactions.item_ids()
    users, k = ranking.top_ids.shape
    table = polars.DataFrame(
        {
            "user_id": user_ids.gather(np.repeat(ranking.user - 1, k)),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), users),
            "item_id": item_ids.gather(ranking.top_ids.reshape(-1) - 1),
            "score": ranking.top_scores.reshape(-1),
        }
    ).filter(polars.col("score").is_finite())  # a user may have fewer than k items left
    temporary = workdir / "recommendations.parquet.tmp"
    table.write_parquet(temporary)
    temporary.replace(workdir / "recommendations.parquet")
