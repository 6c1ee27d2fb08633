"""The optimizer: AdamW with one group for what looks at images or features, one for the rest."""

import jax
import optax
from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError


def build_optimizer(optim: ConfigDict) -> optax.GradientTransformation:
    """Builds AdamW as the reference uses it: dense, decaying every tensor, biases included.

    `visual_lr` and `visual_weight_decay` apply to what looks at images or features: trunk, head and
    other projections (the reference's `modal_*`), `lr` and `weight_decay` to the rest.
    `warmup_steps` ramps both rates up linearly.

    Raises:
      UserError: a negative rate, decay, clip norm or number of steps.
    """
    for name, value in optim.items():
        if value < 0:
            raise UserError(f"optim.{name}={value} is negative; give zero or more")
        if name in ("b1", "b2") and value >= 1:
            raise UserError(f"optim.{name}={value}; expected less than 1")

    def adamw(lr: float, weight_decay: float) -> optax.GradientTransformation:
        rate = optax.linear_schedule(lr / max(optim.warmup_steps, 1), lr, optim.warmup_steps)
        return optax.adamw(
            rate if optim.warmup_steps else lr,
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=weight_decay,
        )

    groups = {
        "visual": adamw(optim.visual_lr, optim.visual_weight_decay),
        "other": adamw(optim.lr, optim.weight_decay),
    }
    optimizer = optax.partition(groups, _labels)
    if optim.clip_norm:
        return optax.chain(optax.clip_by_global_norm(optim.clip_norm), optimizer)
    return optimizer


def _labels(params: dict) -> dict:
    def label(path: tuple, _: jax.Array) -> str:
        names = [key.key for key in path]
        return "visual" if names[0] == "item_encoder" and names[-1] != "table" else "other"

    return jax.tree_util.tree_map_with_path(label, params)
