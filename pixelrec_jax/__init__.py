"""Image recommendation trained end to end from raw pixels, in JAX.

Importing this package is quick: the functions below are loaded when they are first used.

  prepare(interactions, images, out)  makes a dataset from a CSV and a folder of images
  load_config("pixelrec:user=sasrec,item=id,dataset=toy")  returns a config, which you can change
  train(config, workdir)              trains and evaluates; the same call continues a run
  evaluate(workdir)                   ranks the test split again with the best checkpoint
  load_run(workdir)                   returns a `Run`: config, model, variables and dataset
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {  # the module of each public name
    "Run": "pixelrec_jax.api",
    "evaluate": "pixelrec_jax.api",
    "load_config": "pixelrec_jax.configs.loading",
    "load_run": "pixelrec_jax.api",
    "prepare": "pixelrec_jax.ingest.prepare",
    "train": "pixelrec_jax.api",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    """Returns the object of a public name; imports its module first."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
