"""What each key of a config means, its default and its range."""

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from pixelrec_jax.system.config import check_keys, flatten
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.options import (
    Flag,
    Number,
    OneOf,
    Option,
    Range,
    Text,
    Whole,
    Wholes,
    check_options,
    options_of,
)


@dataclass(frozen=True)
class Key:
    """A key that every config has.

    Attributes:
      default: the value that all rows of the paper share.
      meaning, range: see `Option`.
    """

    default: Any
    meaning: str
    range: Range | None


# The sections of a config. What `user`, `item` and `task` hold beside this is declared by the
# encoders and tasks.
KEYS: dict[str, Key | dict[str, Key]] = {
    "seed": Key(2020, "of initial weights, order, negatives, masks and dropout", Whole(0)),
    "width": Key(512, "D, entries of item and user vectors", Whole()),
    "dataset": {
        "name": Key("", "what the dataset is called in reports", Text()),
        "path": Key("", "folder of the prepared dataset", Text()),
    },
    "warm_start": {
        "run": Key("", "folder of a finished run to start from (Table 7); '' starts anew", Text()),
        "scope": Key(
            "item",
            "what is taken from that run: the item encoder, or all but its users",
            OneOf("item", "all"),
        ),
    },
    "task": {
        "name": Key("next_item", "which pairs are trained on, a key of `TASKS`", None),
        "history_length": Key(10, "L, how many items of a user are read at once", Whole()),
    },
    "negatives": {
        "name": Key("uniform", "how negatives are drawn, a key of `NEGATIVES`", None),
        "count": Key(1, "K, own negatives of each target", Whole()),
    },
    "user": {},
    "item": {},
    "loss": {
        "name": Key("bpr", "what training minimises, a key of `LOSSES`", None),
        "epsilon": Key(
            0.0, "of log(sigmoid(x) + epsilon); 0 is stable, the reference has 1e-8", Number(0)
        ),
        "single_row": Key(
            False, "whether only a batch's first row counts, as in the reference's FM", Flag()
        ),
    },
    "optim": {
        "lr": Key(1e-4, "learning rate of what sees neither images nor features", Number(0)),
        "weight_decay": Key(0.1, "decoupled weight decay of the same", Number(0)),
        "visual_lr": Key(1e-4, "learning rate of backbones, heads and projections", Number(0)),
        "visual_weight_decay": Key(0.0, "decoupled weight decay of the same", Number(0)),
        "b1": Key(0.9, "Adam's decay of the mean gradient", Number(0, below=1)),
        "b2": Key(0.999, "Adam's decay of the mean squared gradient", Number(0, below=1)),
        "eps": Key(1e-8, "added to Adam's denominator", Number(0)),
        "warmup_steps": Key(0, "steps in which learning rates grow from 0", Whole(0)),
        "clip_norm": Key(0.0, "largest norm of the whole gradient; 0 does not clip", Number(0)),
    },
    "train": {
        "batch_size": Key(64, "examples of the task in a step, over all devices", Whole()),
        "epochs": Key(200, "passes over the training examples, at most", Whole(0)),
        "patience": Key(30, "evaluations without improvement before training stops", Whole(0)),
        "eval_every": Key(1, "epochs between evaluations", Whole()),
        "checkpoint_every": Key(1000, "steps between checkpoints, beside evaluations'", Whole()),
        "log_every": Key(50, "steps between lines of the log", Whole()),
    },
    "eval": {
        "ks": Key((5, 10), "lengths of lists at which metrics are taken", Wholes()),
        "monitor": Key("ndcg@10", "metric that says which checkpoint is the best", Text()),
        "batch_size": Key(1024, "users ranked at once", Whole()),
        "encode_batch_size": Key(128, "items encoded at once on each device", Whole()),
        "chunk": Key(32768, "items scored at once on each device; bounds the memory", Whole()),
        "cold_threshold": Key(3, "training interactions up to which a target is cold", Whole(0)),
    },
    "data": {
        "workers": Key(0, "processes that decode images; 0 decodes in threads", Whole(0)),
        "threads": Key(2, "threads in each of these processes", Whole()),
        "prefetch": Key(2, "batches each may be ahead; a batch of images takes megabytes", Whole()),
        "slot_buckets": Key(1, "sizes that the set of distinct items of a batch may take", Whole()),
    },
    "log": {
        "writers": Key((), "trackers that take records beside TensorBoard: wandb, mlflow", None),
    },
    "profile": {
        "start": Key(0, "first step of a trace below WORKDIR/profile", Whole(0)),
        "steps": Key(0, "how many steps are traced; 0 traces nothing", Whole(0)),
    },
    "mesh": {
        "data": Key(-1, "devices that split the batch; -1 takes the rest", None),
        "fsdp": Key(1, "devices that split the batch, large parameters and tables", None),
        "tensor": Key(1, "devices that split heads, hidden units and tables", None),
        "fsdp_min_size": Key(2**16, "entries from which fsdp splits a parameter", Whole(0)),
    },
}

# Keys that a word of a config adds.
_ADDED = {
    "user.name": Option("what a user is, a key of `USER_ENCODERS`", None),
    "dataset.split.name": Option("how interactions are split, a key of `SPLITS`", None),
    "dataset.split.valid_from": Option(
        "where validation begins: a timestamp, or the fraction of interactions before it", None
    ),
    "dataset.split.test_from": Option("where the test begins, given likewise", None),
}


def meaning(key: str) -> str:
    """Returns a line that says what a dotted key of a config means, as for "optim.lr".

    Raises:
      UserError: no config has this key.
    """
    from pixelrec_jax.data.tasks import TASKS
    from pixelrec_jax.items import ITEM_ENCODERS, item_options
    from pixelrec_jax.users import USER_ENCODERS

    options = _shared_options()
    for encoder in USER_ENCODERS.values():
        options |= flatten(options_of(encoder), "user.")
    for name in ITEM_ENCODERS:
        options |= flatten(item_options(name), "item.")
    for task in TASKS.values():
        options |= flatten(task.options, "task.")
    check_keys([key], options)
    return options[key].meaning


def check_values(config: ConfigDict) -> None:
    """Checks a config against the ranges that are declared beside its options.

    Raises:
      UserError: a key is not known, or no run can work with a value.
    """
    check_options(flatten(config.to_dict()), _options(config))
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in config.eval.ks]
    if config.eval.monitor not in metrics:
        raise UserError(
            f"eval.monitor={config.eval.monitor!r}; expected one of {', '.join(metrics)}, as "
            f"eval.ks is {tuple(config.eval.ks)}"
        )


def _shared_options() -> dict[str, Option]:
    return _ADDED | {key: Option(k.meaning, k.range) for key, k in flatten(KEYS).items()}


def _options(config: ConfigDict) -> dict[str, Option]:
    """Returns the options that a config of its user encoder, item encoder and task may have."""
    # Imported late: encoders bring JAX, which a launcher needs only to check a config.
    from pixelrec_jax.data.tasks import TASKS, task_of
    from pixelrec_jax.items import item_options
    from pixelrec_jax.users import USER_ENCODERS

    name = config.user.name
    if name not in USER_ENCODERS:
        raise UserError(f"unknown user encoder {name!r}{nearest(name, USER_ENCODERS)}")
    needed = task_of(config).options
    known = set().union(*(task.options for task in TASKS.values()))
    given = {key for key in config.task if key in known}
    problems = [f"needs task.{key}, which the config lacks" for key in set(needed) - given]
    problems += [f"does not take task.{key}, which the config has" for key in given - set(needed)]
    if problems:
        raise UserError(
            f"task.name={config.task.name!r} does not suit user={name}: it {problems[0]}; "
            "take the task of configs/recommenders.py"
        )
    return {
        **_shared_options(),
        **flatten(options_of(USER_ENCODERS[name]), "user."),
        **flatten(item_options(config.item.name), "item."),
        **flatten(needed, "task."),
    }
