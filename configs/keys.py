"""The keys of a config, with default, meaning and range."""

from pixelrec_jax.system.options import Flag, Key, Number, OneOf, Option, Text, Whole, Wholes, Words

# The keys of every config. Further keys of `user`, `item`, `task`, `negatives` and `loss` are
# declared by the code that reads them.
KEYS: dict[str, Key | dict[str, Key]] = {
    "seed": Key(2020, "seed of initial weights, order, negatives, masks and dropout", Whole(0)),
    "width": Key(512, "D, the number of entries of a query", Whole()),
    "dataset": {
        "name": Key("", "name of the dataset in reports", Text()),
        "path": Key("", "folder of the prepared dataset", Text(), "nothing"),
    },
    "warm_start": {
        "run": Key("", "folder of a finished run to start from (Table 7); '' for none", Text()),
        "scope": Key(
            "item",
            "what is taken from that run: the item encoder, or all except tables of users",
            OneOf("item", "all"),
        ),
    },
    "task": {
        "name": Key("next_item", "how interactions become training examples: `TASKS`", Text()),
        "history_length": Key(10, "L, the number of items in a history", Whole()),
    },
    "negatives": {
        "name": Key("uniform", "how negatives are drawn: `NEGATIVES`", Text()),
    },
    "user": {},
    "item": {},
    "loss": {
        "name": Key("bpr", "the loss that training minimises: `LOSSES`", Text()),
    },
    "optim": {
        "lr": Key(1e-4, "learning rate of parameters that read no images or features", Number(0)),
        "weight_decay": Key(0.1, "decoupled weight decay of the same parameters", Number(0)),
        "visual_lr": Key(1e-4, "learning rate of backbones, heads and projections", Number(0)),
        "visual_weight_decay": Key(0.0, "decoupled weight decay of the same parameters", Number(0)),
        "b1": Key(0.9, "Adam's decay of the mean gradient", Number(0, below=1)),
        "b2": Key(0.999, "Adam's decay of the mean squared gradient", Number(0, below=1)),
        "eps": Key(1e-8, "added to Adam's denominator", Number(0)),
        "warmup_steps": Key(0, "steps in which learning rates grow from 0", Whole(0)),
        "clip_norm": Key(0.0, "largest global norm of the gradient; 0 does not clip", Number(0)),
        "lazy_tables": Key(
            False, "whether a step changes only the rows of tables that its batch reads", Flag()
        ),
    },
    "train": {
        "batch_size": Key(64, "examples of the task in a step, over all devices", Whole()),
        "microbatches": Key(
            1,
            "pieces of a batch that a step computes one after the other, to save memory",
            Whole(),
            "rounding",
        ),
        "epochs": Key(200, "passes over the training examples, at most", Whole(0), "length"),
        "patience": Key(
            30, "evaluations without improvement before training stops", Whole(0), "length"
        ),
        "eval_every": Key(1, "epochs between evaluations", Whole()),
        "checkpoint_every": Key(
            1000, "steps between checkpoints; evaluations also save", Whole(), "nothing"
        ),
        "log_every": Key(50, "steps between lines of the log", Whole(), "nothing"),
    },
    "eval": {
        "ks": Key((5, 10), "values of k for recall@k and ndcg@k", Wholes(), "report"),
        "monitor": Key("ndcg@10", "metric that decides which checkpoint is the best", Text()),
        "batch_size": Key(1024, "users ranked at once", Whole(), "nothing"),
        "encode_batch_size": Key(128, "items encoded at once on each device", Whole(), "rounding"),
        "chunk": Key(
            32768, "items scored at once on each device; bounds the memory", Whole(), "nothing"
        ),
        "cold_threshold": Key(3, "most training interactions of a cold target", Whole(0), "report"),
    },
    "data": {
        "workers": Key(
            0, "processes that decode images; 0 decodes in threads", Whole(0, 1024), "nothing"
        ),
        "threads": Key(2, "threads in each of these processes", Whole(1, 1024), "nothing"),
        "prefetch": Key(
            2,
            "batches that each process may be ahead; they take memory",
            Whole(1, 1024),
            "nothing",
        ),
        "slot_buckets": Key(
            1, "how many sizes U, a shard's items, may have; the step is compiled for each", Whole()
        ),
    },
    "log": {
        "writers": Key(
            (), "trackers that also get the metrics: wandb, mlflow", Words(("wandb",)), "nothing"
        ),
    },
    "profile": {
        "start": Key(0, "first step of a trace in WORKDIR/profile", Whole(0), "nothing"),
        "steps": Key(0, "number of steps in the trace; 0 traces nothing", Whole(0), "nothing"),
    },
    "mesh": {
        "data": Key(-1, "devices that split the batch; -1 takes the rest", Whole(-1), "rounding"),
        "fsdp": Key(
            1, "devices that split the batch, large parameters and tables", Whole(), "rounding"
        ),
        "tensor": Key(1, "devices that split heads, hidden units and tables", Whole(), "rounding"),
        "fsdp_min_size": Key(
            2**16, "fewest entries of a parameter that fsdp splits", Whole(0), "rounding"
        ),
    },
}

# Keys that only some words of a config add.
ADDED = {
    "user.name": Option("the user encoder: `USER_ENCODERS`", Text()),
    "dataset.split.name": Option("how interactions are split: `SPLITS`", Text()),
    "dataset.split.valid_from": Option(
        "start of validation: a timestamp, or the fraction of interactions before it", None
    ),
    "dataset.split.test_from": Option("start of the test, in the same form", None),
}
