"""Short runs on the toy dataset, their ends, and how two of them compare."""

import json
from contextlib import contextmanager

import jax
import numpy as np

from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from tests.steps import draw_state, place_state
from tests.tiny import tiny_config

MODELS = ("user=sasrec,item=id,dataset=toy", "user=sasrec,item=vit_toy,dataset=toy")


def run_config(words, dataset, **train_changes):
    """A config of one layer with dropout, so that all runs of a model share its programs."""
    config = tiny_config(words, dataset)
    if "dropout" in config.user:
        config.user.update({"layers": 1, "dropout": 0.1})
    config.train.log_every = 2
    config.train.checkpoint_every = 3
    config.train.epochs = 2
    config.train.update(train_changes)
    return config


def save_run(config, workdir):
    """Fills a workdir with a run whose best checkpoint has random weights; returns its state."""
    experiment = build_experiment(config)
    state = place_state(draw_state(experiment), experiment)
    checkpoints = Checkpoints(workdir / "checkpoints", metric=config.eval.monitor)
    with run_folder.claim(workdir, config), checkpoints:
        checkpoints.save(1, state, metadata={}, metrics={config.eval.monitor: 0.5})
    return state


def cached_config(toy_dataset, folder, words="user=mf,item=vit_toy", **item):
    """A config that reads activations in a folder; the last block is trained."""
    config = run_config(f"{words},dataset=toy", toy_dataset)
    item = {"weights": "", "trainable": "last:1", "source": "cached"} | item
    config.item.update(item | {"cache_dir": str(folder)})
    return config


class KilledError(Exception):
    pass


def dying_iterate(at_batch):
    """The real pipeline, which dies before batch `at_batch` of this process."""
    real = train.iterate

    @contextmanager
    def iterate(*args, **kwargs):
        def batches(iterator):
            for number, batch in enumerate(iterator):
                if number == at_batch:
                    raise KilledError
                yield batch

        with real(*args, **kwargs) as iterator:
            yield batches(iterator)

    return iterate


def finish_run(config, workdir):
    """Runs to the end; returns the final state, the logged values and the result."""
    result = train.train_and_evaluate(config, workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in [n for n in record if n.startswith("time/") or "_per_" in n]:
            del record[name]
    return latest_state(config, workdir), records, result


def latest_state(config, workdir):
    """The state of the latest checkpoint."""
    template = state_template(build_experiment(config))
    with Checkpoints(workdir / "checkpoints", metric=config.eval.monitor) as checkpoints:
        return jax.device_get(checkpoints.restore(checkpoints.latest, template))


def assert_equal_runs(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1] == other[1]
    assert one[2] == other[2]
