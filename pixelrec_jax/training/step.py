"""The training step: gradient, optimizer, metrics."""

from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.types import Batch
from pixelrec_jax.losses import build_loss
from pixelrec_jax.parallel import tables
from pixelrec_jax.parallel.sharding import unshard_params
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.gradient import value_and_sparse_grad
from pixelrec_jax.training.optim import global_norm, learning_rates
from pixelrec_jax.training.state import TrainState, state_template


@lru_cache(maxsize=2)  # StepFlops counts the operations of the same step
def make_train_step(experiment: Experiment):
    """Returns the jitted step: (donated state, global batch, resident) -> (state, metrics).

    Metrics are float32[]: `loss`; `mean_loss`, the mean of the losses since the last log line; the
    global norms `gradient_norm` (before clipping) and `update_norm` (NaN in steps that are not
    recorded); and the learning rates `lr` and `visual_lr`.
    """
    config, model, optimizer = experiment.config, experiment.model, experiment.optimizer
    mesh, compute_loss = experiment.mesh, build_loss(experiment.config.loss)
    shardings = jax.tree.map(lambda x: x.sharding, state_template(experiment))
    steps_per_epoch = experiment.batches.steps_per_epoch

    def train_step(
        state: TrainState, batch: Batch, resident: Resident
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        dropout = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(trainable: dict, embeddings: dict, batch: Batch) -> tuple[jax.Array, dict]:
            variables = state.replace(trainable=trainable).variables
            variables["params"] = unshard_params(variables["params"], mesh)
            variables = model.propagate(variables, resident, mesh)
            apply = nn.apply(Recommender.__call__, model, mutable=list(state.model_state))
            (query, item), model_state = apply(
                {**variables, tables.COLLECTION: embeddings},
                batch,
                train=True,
                rngs={"dropout": dropout},
            )
            score = partial(nn.apply(Recommender.score, model), {})
            return compute_loss(score, query, item, batch), model_state

        lookups = model.embedding_lookups(items=batch.items, user=batch.user)
        (loss, model_state), gradient = value_and_sparse_grad(
            loss_of,
            state.trainable,
            batch,
            lookups,
            microbatches=config.train.microbatches,
            mesh=mesh,
            shardings=shardings.trainable,
        )
        trainable, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        is_first = state.step % config.train.log_every == 0  # since the last log line
        loss_sum = jnp.where(is_first, 0, state.loss_sum) + loss
        loss_count = jnp.where(is_first, 0, state.loss_count) + 1
        metrics = {
            "loss": loss,
            "mean_loss": loss_sum / loss_count,
            "gradient_norm": global_norm(gradient),
            **learning_rates(config.optim, state.step),
        }
        new_state = state.replace(
            step=state.step + 1,
            trainable=trainable,
            model_state=model_state,
            opt_state=opt_state,
            loss_sum=loss_sum,
            loss_count=loss_count,
        )
        done = new_state.step
        recorded = (done % config.train.log_every == 0) | (done % steps_per_epoch == 0)
        latest = partial(optimizer.update_norm, gradient, opt_state, trainable)
        metrics["update_norm"] = jax.lax.cond(recorded, latest, lambda: jnp.float32(jnp.nan))
        return new_state, metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated))
