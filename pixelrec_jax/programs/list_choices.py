"""Lists what a config can name, each with a line that says what it is.

pixelrec list recommenders
pixelrec list encoders
pixelrec list keys         # every key of a config with its meaning

Others are datasets, tasks, losses and negatives.
"""

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest


def _recommenders() -> dict[str, str]:
    from pixelrec_jax.configs.recommenders import RECOMMENDERS

    return {
        name: f"{settings.paper}, task {settings.task['name']}"
        for name, settings in RECOMMENDERS.items()
    }


def _encoders() -> dict[str, str]:
    from pixelrec_jax.configs.encoders import ENCODERS, EncoderSettings

    def about(encoder: EncoderSettings) -> str:
        weights = encoder.weights.partition("#")[0]
        weights = weights.rpartition("/")[2] if "://" in weights else weights
        source = weights or "no weights"
        return f"{source}, {encoder.image_size} pixels, trains {encoder.trainable}"

    return {name: about(encoder) for name, encoder in ENCODERS.items()}


def _datasets() -> dict[str, str]:
    from pixelrec_jax.configs.datasets import DATASETS

    return _first_lines(DATASETS)


def _tasks() -> dict[str, str]:
    from pixelrec_jax.data.tasks import TASKS

    return _first_lines(TASKS)


def _losses() -> dict[str, str]:
    from pixelrec_jax.losses import LOSSES

    return _first_lines(LOSSES)


def _negatives() -> dict[str, str]:
    from pixelrec_jax.data.negatives import NEGATIVES

    return _first_lines(NEGATIVES)


def _keys() -> dict[str, str]:
    from pixelrec_jax.configs.checks import all_options

    return {name: option.meaning for name, option in sorted(all_options().items())}


def _first_lines(registry: Mapping[str, Any]) -> dict[str, str]:
    """Returns the first line of the description of each entry."""
    return {name: (entry.__doc__ or "").partition("\n")[0] for name, entry in registry.items()}


# What can be listed; each imports only what it needs.
KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "recommenders": _recommenders,
    "encoders": _encoders,
    "datasets": _datasets,
    "tasks": _tasks,
    "losses": _losses,
    "negatives": _negatives,
    "keys": _keys,
}


def main(argv: Sequence[str]) -> None:
    """Prints the kinds of choices that the arguments name."""
    for kind in argv[1:]:
        if kind not in KINDS:
            raise UserError(f"unknown {kind!r}{nearest(kind, KINDS)}")
    width = shutil.get_terminal_size().columns
    for kind in argv[1:]:
        choices = KINDS[kind]()
        indent = min(max(map(len, choices)), 26) + 2
        for name, meaning in choices.items():
            print(
                textwrap.fill(
                    f"{name:{indent - 1}} {meaning}",
                    width,
                    subsequent_indent=" " * indent,
                    break_on_hyphens=False,
                    break_long_words=False,
                )
            )


if __name__ == "__main__":
    program.run(main, arguments="|".join(KINDS))
