"""Writes the vision encoder of a trained model as a file for other programs.

The tensors have the names of the architecture's published checkpoints. So PyTorch code can load
them, and another run can with --config.item.weights=encoder.safetensors.
"""

from pathlib import Path

from pixelrec_jax.items import uses_pixels
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.pretrained import backbone_variables, merge_collections
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.weights.files import write_tensors
from pixelrec_jax.weights.mapping import write_weights


def export(workdir: Path, out: Path, names: str | None = None) -> int:
    """Writes the encoder of the best checkpoint; returns the number of tensors.

    Args:
      workdir: folder of a trained run.
      out: the file to write.
      names: name of one of the encoder's mappings, by default its first.

    Raises:
      UserError: the run has no vision encoder or no evaluated checkpoint, or the names are unknown.
    """
    config = run_folder.read_config(workdir)
    if not uses_pixels(config.item):
        raise UserError(
            f"{workdir} trained item={config.item.name}, which has no vision encoder; give the "
            "--workdir of a run with one"
        )
    mappings = {mapping.name: mapping for mapping in VISION_ENCODERS[config.item.name].mappings}
    if not mappings:
        raise UserError(
            f"item={config.item.name} has no published form, so that other programs cannot load "
            "its weights; export a run with another encoder"
        )
    names = names or next(iter(mappings))
    if names not in mappings:
        raise UserError(f"unknown --names={names!r}{nearest(names, mappings)}")
    _, variables = best_variables(workdir, config)
    tensors = write_weights(merge_collections(backbone_variables(variables)), mappings[names])
    write_tensors(out, tensors)
    return len(tensors)
