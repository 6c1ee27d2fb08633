"""Command lines of launchers, and the run that they start."""

import subprocess

CONFIG = "--config=pixelrec:user=sasrec,dataset=pixel200k"
# A value that a shell would take apart.
HARD = '--config.warm_start.run=gs://b/it\'s $HOME "a" \\ b;c'
RUN = ["--", CONFIG, "--config.dataset.path=gs://b/data", "--workdir=gs://b/runs", HARD]
GKE = ["gke", "--name=first", "--topology=v5e:4x4", "--image=reg/img:1"]
TPU = ["tpu", "--name=first", "--project=p", "--zone=z-a", "--topology=v5e:4x4"]
SLURM = ["slurm", "--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--python=/env/bin/python"]
ENCODERS = ("swin_t", "clip_vit_b32")
SWEEP = f"--sweep={','.join(ENCODERS)}"


def flags_of(encoder: str = "") -> list[str]:
    """The flags of a run, as `pixelrec train` has to get them."""
    if not encoder:
        return RUN[1:]
    return [f"{CONFIG},item={encoder}", RUN[2], f"--workdir=gs://b/runs/{encoder}", HARD]


def options(argv: list[str]) -> dict[str, str]:
    """The options of a command by name; those without a value have an empty one."""
    split = (word.partition("=") for word in argv if word.startswith("--"))
    return {name: value for name, _, value in split}


def check_shell(script: str) -> None:
    """Raises if it is not a script of bash."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
