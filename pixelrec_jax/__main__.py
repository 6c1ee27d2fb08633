"""The command `pixelrec`: its first word names the program to run.

pixelrec PROGRAM --help says what a program does and which flags it takes.
"""

import runpy
import sys
from typing import NamedTuple

from pixelrec_jax.system.errors import nearest
from pixelrec_jax.system.program import one_line_errors


class Program(NamedTuple):
    """A program: its module, which is imported only to run it, and its purpose."""

    module: str
    purpose: str


PROGRAMS = {
    "train": Program("pixelrec_jax.programs.train", "trains a recommender, or evaluates one"),
    "list": Program("pixelrec_jax.programs.list_choices", "lists models, datasets and keys"),
    "report": Program("pixelrec_jax.programs.report", "shows the results of runs side by side"),
    "prepare": Program("pixelrec_jax.programs.prepare", "makes a dataset from a CSV and images"),
    "analyze": Program("pixelrec_jax.programs.analyze", "shows statistics of prepared datasets"),
    "extract": Program("pixelrec_jax.programs.extract", "writes features of a frozen encoder"),
    "cache": Program("pixelrec_jax.programs.cache", "lists or removes cached activations"),
    "export": Program("pixelrec_jax.programs.export", "writes the vision encoder of a run"),
    "toy": Program("pixelrec_jax.programs.toy", "draws a toy catalogue with users"),
    "download": Program("pixelrec_jax.programs.download", "downloads the files of PixelRec"),
    "fetch_images": Program(
        "pixelrec_jax.programs.fetch_images", "fetches the images of a list of URLs"
    ),
    "tfds": Program("pixelrec_jax.programs.tfds", "builds the TFDS dataset `pixelrec`"),
    "launch local": Program("pixelrec_jax.launch.local", "trains on all devices of this machine"),
    "launch slurm": Program("pixelrec_jax.launch.slurm", "submits runs to a Slurm cluster"),
    "launch gke": Program("pixelrec_jax.launch.gke", "runs on TPU slices of a GKE cluster"),
    "launch tpu": Program("pixelrec_jax.launch.tpu", "runs on TPU VMs of Google Cloud"),
    "dryrun": Program("pixelrec_jax.programs.dryrun", "says what a run needs on a TPU pod"),
    "dryrun_table": Program("pixelrec_jax.programs.dryrun_table", "dry runs of many configs"),
}


def main() -> None:
    """Runs the program that the command line names, or prints the list of programs."""
    with one_line_errors():
        _main(sys.argv[1:])


def _main(words: list[str]) -> None:
    length = 2 if words[:1] == ["launch"] else 1
    name = " ".join(words[:length])
    if words[length - 1 : length] in ([], ["--help"], ["-h"], ["help"]):
        print("usage: pixelrec PROGRAM [--flag=value ...]; PROGRAM --help says more\n")
        for known, program in PROGRAMS.items():
            if length == 1 or known.startswith("launch "):
                print(f"  {known:<14}{program.purpose}")
    elif name not in PROGRAMS:
        print(f"error: unknown program {name!r}{nearest(name, PROGRAMS)}", file=sys.stderr)
        sys.exit(2)
    else:
        # The same as `python -m MODULE`: workers can import the module, and --help finds its text.
        sys.argv = [name, *words[length:]]
        runpy.run_module(PROGRAMS[name].module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
