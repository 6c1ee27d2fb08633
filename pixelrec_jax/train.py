"""Joint training of item and user encoder: the state, the step and the loop, top to bottom."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelrec_jax import freeze, weights
from pixelrec_jax import workdir as workdirs
from pixelrec_jax.checkpoint import Checkpoints
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import Interactions, load
from pixelrec_jax.data.pipeline import TrainBatches, iterate
from pixelrec_jax.data.tasks import TASKS
from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.errors import UserError, nearest
from pixelrec_jax.evaluate import Evaluator
from pixelrec_jax.items import uses_pixels
from pixelrec_jax.items.vision import VISION
from pixelrec_jax.losses import bpr
from pixelrec_jax.optim import build_optimizer
from pixelrec_jax.progress import TrainingProgress
from pixelrec_jax.recommender import Recommender, build
from pixelrec_jax.sharding import (
    BATCH,
    build_mesh,
    infer_shardings,
    local_shards,
    num_shards,
    to_global,
)


@struct.dataclass
class TrainState:
    """Everything that training changes, and the frozen weights it needs.

    Attributes:
      step: int32[], updates done.
      trainable: parameters that are differentiated and updated.
      frozen: parameters that are neither; `freeze.merge` joins the two.
      opt_state: optimizer moments, of trainable parameters only.
      loss_sum: float32[], sum of the losses since the last log line; kept here and not on the host
        so that a step needs no synchronisation and an interrupted sum continues exactly.
    """

    step: jax.Array
    trainable: dict
    frozen: dict
    opt_state: Any
    loss_sum: jax.Array

    @property
    def params(self) -> dict:
        """The complete parameters."""
        return freeze.merge(self.trainable, self.frozen)


@dataclass(frozen=True)
class Experiment:
    """What a config describes, built: data, model, optimizer, mesh, and the ranking of it."""

    config: ConfigDict
    mesh: Mesh
    interactions: Interactions
    images: ImageStore | None
    model: Recommender
    optimizer: optax.GradientTransformation
    evaluator: Evaluator


def build_experiment(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Experiment:
    """Opens the dataset and builds everything; wrong configs fail here, before any work."""
    if config.task.name not in TASKS:
        raise UserError(f"unknown task {config.task.name!r}{nearest(config.task.name, TASKS)}")
    mesh = build_mesh(config.mesh, devices)
    interactions = load(config.dataset.path)
    model = build(config, num_items=interactions.num_items)
    images = None
    if uses_pixels(config.item):
        images = ImageStore(interactions.directory, size=config.item.image_size)
    evaluator = Evaluator(model, interactions, images, config, mesh)
    optimizer = build_optimizer(config.optim)
    return Experiment(config, mesh, interactions, images, model, optimizer, evaluator)


def create_state(experiment: Experiment, pretrained: dict | None = None) -> TrainState:
    """Returns a new state; `pretrained` replaces the random weights of the vision trunk.

    Traceable: `jax.eval_shape` of it gives the shapes without allocating anything.
    """
    config, model = experiment.config, experiment.model
    size = config.item.image_size if experiment.images else 0
    image = jnp.zeros((1, 1, size, size, 3), jnp.uint8) if experiment.images else None
    slot = jnp.zeros((1, 1, config.task.history_length), jnp.int32)
    batch = Batch(
        items=Items(id=jnp.zeros((1, 1), jnp.int32), image=image),
        user=jnp.zeros((1, 1), jnp.int32),
        history=slot,
        positive=slot[..., :1],
        negative=slot[..., :1, None],
        weight=jnp.zeros((1, 1, 1)),
    )
    params = model.init(jax.random.key(config.seed), batch, train=False)["params"]
    if pretrained is not None:
        params = {**params, "item_encoder": {**params["item_encoder"], "trunk": pretrained}}
    trainable, frozen = freeze.partition(params, _is_trainable(experiment))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        opt_state=experiment.optimizer.init(trainable),
        loss_sum=jnp.zeros((), jnp.float32),
    )


def _is_trainable(experiment: Experiment):
    if not experiment.images:
        return lambda path: True
    blocks = experiment.model.item_encoder.trunk.blocks
    tuned = freeze.trainable_blocks(experiment.config.item.trainable, blocks)

    def is_trainable(path: str) -> bool:
        parts = path.split("/")
        return parts[:2] != ["item_encoder", "trunk"] or parts[2] in tuned

    return is_trainable


def state_template(experiment: Experiment) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(lambda: create_state(experiment))
    shardings = infer_shardings(shapes, experiment.mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(experiment: Experiment) -> TrainState:
    """Returns the state at step 0 on the mesh, with pretrained weights where the config has some."""
    template = state_template(experiment)
    pretrained = None
    if experiment.images and (source := experiment.config.item.weights):
        rules = VISION[experiment.config.item.name].rules
        if rules is None:
            name = experiment.config.item.name
            raise UserError(f"{name} has no published weights; set item.weights=''")
        trunk = template.params["item_encoder"]["trunk"]
        path = weights.locate(source)
        pretrained = weights.port(weights.read_safetensors(path), rules, trunk, origin=str(path))
    shardings = jax.tree.map(lambda x: x.sharding, template)
    create = jax.jit(lambda trunk: create_state(experiment, trunk), out_shardings=shardings)
    return create(pretrained)


def make_train_step(experiment: Experiment):
    """Returns the jitted, donated step: (state, global batch) -> (state, loss float32[])."""
    config, model, optimizer = experiment.config, experiment.model, experiment.optimizer

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        dropout = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(trainable: dict) -> jax.Array:
            params = freeze.merge(trainable, state.frozen)
            positive, negative = model.apply(
                {"params": params}, batch, train=True, rngs={"dropout": dropout}
            )
            rows = jnp.sum(batch.user != 0)
            return bpr(positive, negative, batch.weight, rows, epsilon=config.loss.epsilon)

        loss, gradient = jax.value_and_grad(loss_of)(state.trainable)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        first_of_interval = state.step % config.train.log_every == 0
        new_state = state.replace(
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
            loss_sum=jnp.where(first_of_interval, 0, state.loss_sum) + loss,
        )
        return new_state, loss

    shardings = jax.tree.map(lambda x: x.sharding, state_template(experiment))
    replicated = NamedSharding(experiment.mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated))


def training_batches(experiment: Experiment) -> TrainBatches:
    """Returns the training batches of this process, by global step."""
    config, mesh = experiment.config, experiment.mesh
    return TrainBatches(
        experiment.interactions,
        experiment.images,
        TASKS[config.task.name],
        history_length=config.task.history_length,
        negatives=config.task.negatives,
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        seed=config.seed,
        num_shards=num_shards(mesh, BATCH),
        local_shards=local_shards(mesh, BATCH),
        slot_buckets=config.data.slot_buckets,
    )


@dataclass
class EarlyStopping:
    """Stops after more than `patience` evaluations in a row without improvement; ties improve."""

    patience: int
    best: float | None = None
    since_best: int = 0

    def update(self, value: float) -> None:
        """Takes in the next evaluation."""
        if self.best is None or value >= self.best:
            self.best, self.since_best = value, 0
        else:
            self.since_best += 1

    @property
    def stop(self) -> bool:
        """Whether training is over."""
        return self.since_best > self.patience


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Trains, continuing what the workdir holds, then ranks the test split with the best state.

    Returns:
      The content of result.json.
    """
    experiment = build_experiment(config)
    workdirs.claim(workdir, config)
    with Checkpoints(workdir / "checkpoints", metric=config.eval.select) as checkpoints:
        train(experiment, checkpoints, workdir)
        return test(experiment, checkpoints, workdir)


def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Ranks the test split with the best checkpoint of a workdir that holds this config.

    Returns:
      The content of result.json.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"--workdir={workdir} holds no run; train with --mode=train first")
    experiment = build_experiment(config)
    workdirs.claim(workdir, config)
    with Checkpoints(workdir / "checkpoints", metric=config.eval.select) as checkpoints:
        return test(experiment, checkpoints, workdir)


def train(experiment: Experiment, checkpoints: Checkpoints, workdir: Path) -> None:
    """Runs the training loop from the latest checkpoint, or from the start, to its end."""
    config, evaluator = experiment.config, experiment.evaluator
    batches = training_batches(experiment)
    stopping = EarlyStopping(config.train.patience)
    position = {
        "dataset": experiment.interactions.manifest["files"]["items.npy"]["sha256"],
        "steps_per_epoch": batches.steps_per_epoch,
    }
    if checkpoints.latest is None:
        state = init_state(experiment)
    else:
        state, notes = checkpoints.restore(checkpoints.latest, state_template(experiment))
        stopping = EarlyStopping(config.train.patience, **notes["early_stopping"])
        if notes["position"] != {**position, "next_batch": int(state.step)}:
            raise UserError(
                f"the checkpoint in {workdir} was made on another dataset than "
                f"{config.dataset.path} is now; restore that dataset or use another workdir"
            )
    start = int(state.step)
    train_step = make_train_step(experiment)
    with (
        workdirs.MetricsLog(workdir, continue_from=start) as log,
        TrainingProgress(start=start, total=len(batches)) as progress,
        iterate(
            batches,
            start=start,
            stop=len(batches) if not stopping.stop else start,
            workers=config.data.workers,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        ) as iterator,
    ):
        progress.say(_describe(experiment, state, batches, start))
        speed, previous = Speed(), None
        for step, local in enumerate(iterator, start=start + 1):
            state, loss = train_step(state, to_global(local, experiment.mesh, BATCH))
            # One step may run ahead: enough to keep the device busy, without a queue of batches.
            jax.block_until_ready(previous)
            previous = loss
            epoch, in_epoch = divmod(step, batches.steps_per_epoch)
            speed.count(local)
            progress.step(step, epoch)

            scalars: dict[str, float] = {}
            if step % config.train.log_every == 0:
                _check_finite(float(loss), step, checkpoints)
                scalars = {
                    "train/loss": float(state.loss_sum) / config.train.log_every,
                    **speed.read(),
                }
                progress.status(_one_line(step, scalars))
            if last_of_epoch := in_epoch == 0 and epoch % config.train.eval_every == 0:
                _check_finite(float(loss), step, checkpoints)
                values = _values(evaluator.metrics(evaluator.rank(state.params, "valid"))["all"])
                scalars |= {f"valid/{name}": value for name, value in values.items()}
                stopping.update(values[config.eval.select])
                progress.say(f"epoch {epoch}: " + _one_line(step, scalars, prefix="valid/"))
                speed = Speed()
            if scalars:
                log.write(step, {"epoch": step / batches.steps_per_epoch, **scalars})
            if last_of_epoch or step % config.train.checkpoint_every == 0:
                _check_finite(float(loss), step, checkpoints)
                notes = {
                    "config": workdirs.to_json(config),
                    "position": {**position, "next_batch": step},
                    "early_stopping": {
                        "best": stopping.best,
                        "since_best": stopping.since_best,
                    },
                }
                checkpoints.save(step, state, notes, values if last_of_epoch else None)
            if stopping.stop:
                progress.say(f"stopped early: no improvement in {stopping.since_best} evaluations")
                break
    checkpoints.wait()


def test(experiment: Experiment, checkpoints: Checkpoints, workdir: Path) -> dict:
    """Ranks the test split with the best checkpoint; writes result.json and recommendations."""
    if checkpoints.best is None:
        raise UserError(
            f"{workdir} holds no evaluated checkpoint yet; train with --mode=train first"
        )
    state, _ = checkpoints.restore(checkpoints.best, state_template(experiment))
    evaluator = experiment.evaluator
    ranking = evaluator.rank(state.params, "test")
    result = {
        "model": {
            "user": experiment.config.user.name,
            "item": experiment.config.item.name,
            "parameters": _count(state.params),
            "trainable_parameters": _count(state.trainable),
        },
        "dataset": experiment.config.dataset.name,
        "best_step": int(state.step),
        "test": evaluator.report(ranking, "test"),
    }
    workdirs.write_recommendations(workdir, experiment.interactions, ranking)
    workdirs.write_json(workdir / "result.json", result)
    return result


class Speed:
    """Counts what the steps since the last reading worked on."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps, self._sequences, self._images = time.perf_counter(), 0, 0, 0

    def count(self, batch: Batch) -> None:
        """Adds one batch (this process's part of it)."""
        self._steps += 1
        self._sequences += int(np.count_nonzero(batch.user))
        if batch.items.image is not None:
            self._images += int(np.count_nonzero(batch.items.id))

    def read(self) -> dict[str, float]:
        """Returns rates since the last reading; images are distinct ones that were encoded."""
        seconds = time.perf_counter() - self._start
        rates = {
            "train/steps_per_second": self._steps / seconds,
            "train/sequences_per_second": self._sequences / seconds,
        }
        if self._images:
            rates["train/images_per_second"] = self._images / seconds
        self._reset()
        return rates


def _check_finite(loss: float, step: int, checkpoints: Checkpoints) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}; lower optim.lr or set optim.clip_norm, in a new "
            f"workdir (the latest checkpoint here is of step {checkpoints.latest})"
        )


def _describe(experiment: Experiment, state: TrainState, batches: TrainBatches, start: int) -> str:
    config, data = experiment.config, experiment.interactions
    total, trained = _count(state.params), _count(state.trainable)
    return (
        f"{config.user.name} with item={config.item.name}: {total:,} parameters, {trained:,} trained"
        f" | {config.dataset.name}: {data.num_users - 1:,} users, {data.num_items - 1:,} items, "
        f"{batches.steps_per_epoch:,} steps an epoch of {config.train.batch_size} sequences"
        f" | {jax.device_count()} {jax.devices()[0].device_kind} device(s)"
        + (f" | continuing from step {start:,}" if start else "")
    )


def _one_line(step: int, scalars: dict[str, float], prefix: str = "train/") -> str:
    shown = [
        f"{name.removeprefix(prefix).replace('_per_second', '/s')} {value:.4g}"
        for name, value in scalars.items()
        if name.startswith(prefix)
    ]
    return f"step {step}: " + ", ".join(shown)


def _values(metrics: dict) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in metrics.items()}


def _count(params: dict) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
