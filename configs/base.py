"""The keys that all configs share, with the options of every loss and source of negatives."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from pixelrec_jax.configs.keys import KEYS
from pixelrec_jax.data.negatives import NEGATIVES
from pixelrec_jax.losses import LOSSES
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.options import Key, keys_of

# Sections whose `name` is an entry of a registry, which declares its options. A config has the
# options of all entries, so that the command line can choose another entry with its options.
REGISTRIES: dict[str, Mapping[str, Callable[..., Any]]] = {"loss": LOSSES, "negatives": NEGATIVES}


def base() -> ConfigDict:
    """Returns a config with the defaults of `shared_keys`, and empty sections `user` and `item`."""
    config = ConfigDict({section: {} for section, keys in KEYS.items() if isinstance(keys, dict)})
    for dotted, key in shared_keys().items():
        section, _, name = dotted.rpartition(".")
        (config[section] if section else config)[name] = key.default
    return config


def shared_keys() -> dict[str, Key]:
    """Returns the keys of every config, by dotted name."""
    shared = flatten(KEYS)
    for section, registry in REGISTRIES.items():
        for entry, taker in registry.items():
            for name, key in keys_of(taker).items():
                known = shared.setdefault(f"{section}.{name}", key)
                assert known == key, f"{section}.{name} of {entry} is declared in two ways"
    return shared
