"""Writes the vision encoder of a trained model as a file for other programs.

pixelrec export --workdir=runs/pixel --out=encoder.safetensors [--names=torchvision]

The tensors have the names of the architecture's published checkpoints. So PyTorch code can load
them, and another run can with --config.item.weights=encoder.safetensors.
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    program.define_path("workdir", None, "folder of the trained run", required=True)
    program.define_path("out", None, "safetensors file to write", required=True)
    flags.DEFINE_string("names", None, "origin of the names: huggingface, torchvision, openai, ...")


def main(_: Sequence[str]) -> None:
    """Exports the encoder that the flags name."""
    from pixelrec_jax.runs.export import export

    values = flags.FLAGS
    count = export(storage.path(values.workdir), storage.path(values.out), values.names)
    print(f"{values.out}: {count} tensors")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
