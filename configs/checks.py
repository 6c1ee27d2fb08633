"""The options that a config may have, and checks of its values before any work starts."""

from ml_collections import ConfigDict

from pixelrec_jax.configs.base import REGISTRIES, shared_keys
from pixelrec_jax.configs.keys import ADDED, KEYS
from pixelrec_jax.data.tasks import TASKS, task_of
from pixelrec_jax.items import ITEM_ENCODERS, item_options
from pixelrec_jax.system.config import check_keys, flatten
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.options import (
    Changes,
    Option,
    Text,
    check_options,
    check_present,
    keys_of,
    keys_of_chosen,
    options_of,
)
from pixelrec_jax.users import USER_ENCODERS

# Names that every config has, which decide about its further keys.
_NAMES = {
    "user.name": ADDED["user.name"],
    "item.name": Option("the item encoder: `ITEM_ENCODERS`", Text()),
    "dataset.split.name": ADDED["dataset.split.name"],
}


def meaning(key: str) -> str:
    """Returns the meaning of a dotted key such as "optim.lr", as one line.

    Raises:
      UserError: no config has this key.
    """
    options = all_options()
    check_keys([key], options)
    return options[key].meaning


def all_options() -> dict[str, Option]:
    """Returns every key that some config has, by dotted name."""
    options = _shared_options()
    for encoder in USER_ENCODERS.values():
        options |= flatten(options_of(encoder), "user.")
    for name in ITEM_ENCODERS:
        options |= flatten(item_options(name), "item.")
    for task in TASKS.values():
        options |= flatten(task.options, "task.")
    return options


def check_values(config: ConfigDict) -> None:
    """Checks the values of a config against their ranges.

    Raises:
      UserError: a key is unknown or missing, a value is out of its range, or an option belongs to a
        loss or source of negatives that is not chosen.
    """
    values = flatten(config.to_dict())
    check_present(values, [*flatten(KEYS), *_NAMES])
    shared = _shared_options() | _NAMES
    check_options({key: value for key, value in values.items() if key in shared}, shared)
    taken = {
        f"{section}.{key}"
        for section, registry in REGISTRIES.items()
        for key in keys_of_chosen(section, config[section].name, registry)
    }
    check_present(values, sorted(taken))
    options = _options(config)
    check_present(values, sorted(options.keys() - shared.keys()))
    check_options(values, options)
    for key, known in shared_keys().items():
        # An option that the chosen entry does not take would be ignored.
        used = key in taken or key in flatten(KEYS)
        if not used and values.get(key, known.default) != known.default:
            section, _, option = key.partition(".")
            takers = [name for name, x in REGISTRIES[section].items() if option in keys_of(x)]
            raise UserError(
                f"{key}={values[key]!r} is given, but {section}.name={config[section].name} does "
                f"not take it; leave it at {known.default!r}, or take {section}.name="
                f"{' or '.join(takers)}"
            )
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in config.eval.ks]
    if config.eval.monitor not in metrics:
        raise UserError(
            f"eval.monitor={config.eval.monitor!r}; expected one of {', '.join(metrics)}, as "
            f"eval.ks is {tuple(config.eval.ks)}"
        )


def changing(config: ConfigDict) -> dict[str, Changes]:
    """Returns what another value of each key would change in a run that continues.

    Raises:
      UserError: as `check_values`.
    """
    return {name: option.changes for name, option in _options(config).items()}


def _shared_options() -> dict[str, Option]:
    return ADDED | {name: key.option for name, key in shared_keys().items()}


def _options(config: ConfigDict) -> dict[str, Option]:
    """Returns the options of the user encoder, item encoder and task of a config."""
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
    options = {
        **flatten(options_of(USER_ENCODERS[name]), "user."),
        **flatten(item_options(config.item.name), "item."),
    }
    for section in ("user", "item"):
        chosen = config[section].name
        given = {f"{section}.{key}" for key in config[section]} - {f"{section}.name"}
        if foreign := sorted(given & all_options().keys() - options.keys()):
            raise UserError(
                f"{section}.name={chosen} does not take {foreign[0]}, which the config "
                f"has; choose it by its word, as in --config=pixelrec:{section}={chosen}"
            )
    return _shared_options() | options | flatten(needed, "task.")
