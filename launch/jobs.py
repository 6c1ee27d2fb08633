"""The runs that a launcher starts: one, or one for each encoder of a sweep."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.configs.loading import SHIPPED, load_config, with_files
from pixelrec_jax.launch.commands import shell_line
from pixelrec_jax.system.config import check_batch_size, check_keys, flatten, mesh_shape
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.storage import check_protocol, is_remote

# Vision encoders of the paper's Figure 9: (a) kinds, (b) sizes of CLIP's RN50 (RN50 is in both).
FIGURE_9 = (
    "clip_vit_b32",
    "clip_rn50",
    "resnet50",
    "beit_b16",
    "swin_t",
    "swin_b",
    "clip_rn50x4",
    "clip_rn50x16",
    "clip_rn50x64",
)
_READ = ("dataset.path", "item.path", "item.weights")  # paths that a run reads
_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")  # folders that no cluster shares
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: name of the run within a sweep.
      flags: flags of `pixelrec train`.
      config_file: the file of the config, or "pixelrec".
      config: the config with the overrides of the flags.
      folders: folders that all machines must share, by flag.
    """

    name: str
    flags: tuple[str, ...]
    config_file: str
    config: ConfigDict
    folders: dict[str, str]

    @property
    def workdir(self) -> str:
        """The folder of the run."""
        return self.folders["--workdir"]


def names(name: str, sweep: Sequence[str], *, longest: int = 63) -> list[str]:
    """Returns the names of all runs, as Google Cloud and Kubernetes allow them.

    Raises:
      UserError: Google Cloud or Kubernetes would refuse a name.
    """
    every = [_name(name, encoder) for encoder in encoders(sweep)] or [name]
    for given in every:
        if not _NAME.fullmatch(given) or len(given) > longest:
            raise UserError(
                f"--name={name} gives the name {given!r}; expected a lower-case letter, then "
                f"lower-case letters, digits and '-', at most {longest} in all"
            )
    return every


def encoders(sweep: Sequence[str]) -> tuple[str, ...]:
    """Returns the item encoders that --sweep names; "figure9" stands for those of Figure 9.

    Raises:
      UserError: an encoder is named twice.
    """
    every = tuple(x for word in sweep for x in (FIGURE_9 if word == "figure9" else (word,)))
    if len(set(every)) < len(every):
        raise UserError(f"--sweep={','.join(every)} names an encoder twice; name each once")
    return every


def jobs(of_run: Sequence[str], name: str, sweep: Sequence[str]) -> list[Job]:
    """Returns the runs that the flags of `pixelrec train` describe.

    Raises:
      UserError: a flag is missing, does not have the form --name=value or is reserved for the
        launcher, or the config does not exist or is wrong.
    """
    given = _parse(of_run)
    for needed in ("config", "workdir"):
        if not given.get(needed):
            raise UserError(
                f"--{needed} is missing; give the flags of the run after --, as in -- "
                "--config=pixelrec:user=sasrec,dataset=pixel200k --workdir=runs/first"
            )
    if "distributed" in given:
        raise UserError("--distributed is given after --, but the launcher gives it; leave it out")
    if not sweep:
        return [_job(name, tuple(of_run), given)]
    if re.search(r"[:,]item=", given["config"]):
        raise UserError(f"--sweep sets the word item; leave it out of --config={given['config']}")
    every = []
    for encoder in encoders(sweep):
        separator = "," if ":" in given["config"] else ":"
        changed = {
            "config": f"{given['config']}{separator}item={encoder}",
            "workdir": f"{given['workdir'].rstrip('/')}/{encoder}",
        }
        of_job = tuple(_replace(flag, changed) for flag in of_run)
        every.append(_job(_name(name, encoder), of_job, given | changed))
    return every


def check_shared(every: Iterable[Job], shared: Sequence[str], *, what: str) -> None:
    """Raises `UserError` for a folder that is neither on gs:// nor below a shared folder.

    `what` describes a shared folder in the message, as in "a folder that --mount names".
    """
    for job in every:
        for flag, path in job.folders.items():
            below = any(PurePosixPath(path).is_relative_to(folder) for folder in shared)
            if not path.startswith("gs://") and not below:
                raise UserError(
                    f"{flag}={path}; expected gs://BUCKET/..., or {what}, as all machines must see "
                    "it and it must outlive them"
                )


def check_not_local(every: Iterable[Job]) -> None:
    """Raises `UserError` for a folder that nodes cannot share."""
    for job in every:
        for flag, path in job.folders.items():
            if any(PurePosixPath(path).is_relative_to(folder) for folder in _LOCAL):
                raise UserError(
                    f"{flag}={path} is a folder of one node, but a run may continue on another; "
                    "give a folder on storage that all nodes share"
                )


def own_configs(every: Iterable[Job]) -> list[str]:
    """Returns the config files of the user, without the config of this package."""
    return sorted({job.config_file for job in every} - {SHIPPED})


def check_config_travels(every: Iterable[Job], *, folder: str = "") -> None:
    """Raises `UserError` for a config file that is not in the code sent to the machines.

    `folder` is the folder of this repository that is sent; by default all of it.
    """
    for file in own_configs(every):
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.is_relative_to(folder):
            raise UserError(
                f"--config={file}: this file is not sent to the other machine; give "
                f"{SHIPPED}:words, or a file of this repository{folder and f', below {folder}/'}, "
                "relative to its root"
            )


def check_devices(every: Iterable[Job], devices: int, *, slices: int = 1) -> None:
    """Raises `UserError` for a mesh or a batch that does not divide over so many devices."""
    for job in every:
        data, fsdp, _ = mesh_shape(job.config.mesh, devices, slices=slices)
        train = job.config.train
        check_batch_size(train.batch_size, data * fsdp, train.microbatches)


def report(every: Sequence[Job]) -> str:
    """Returns the command that prints the table of these runs."""
    workdirs = [job.workdir for job in every]
    return shell_line(["pixelrec", "report", "--unfinished", *workdirs])


def _name(name: str, encoder: str) -> str:
    return f"{name}-{encoder.replace('_', '-')}"


def _parse(of_run: Sequence[str]) -> dict[str, str]:
    given = {}
    for flag in of_run:
        named = re.fullmatch(r"--?([a-z][\w.]*)(?:=(.*))?", flag, re.DOTALL)
        if not named:
            raise UserError(f"unexpected {flag!r} after --; give flags of the run as --name=value")
        if named[1] == "flagfile" or (named[1] in ("config", "workdir") and not named[2]):
            raise UserError(f"{flag!r} after --; give flags of the run as --name=value, one by one")
        given[named[1]] = named[2] or ""
    return given


def _job(name: str, of_run: tuple[str, ...], given: dict[str, str]) -> Job:
    # Imported here: encoders import JAX, which --help does not need.
    from pixelrec_jax.configs.checks import check_values

    file = given["config"].partition(":")[0]
    config = _config(of_run, given)
    check_values(config)
    values = flatten(config.to_dict())
    folders = {"--workdir": given["workdir"]}
    if values["warm_start.run"]:
        folders["--config.warm_start.run"] = values["warm_start.run"]
    for path in folders.values():
        check_protocol(path)
    for key in _READ:
        path = values.get(key, "")
        # Other relative names are in the dataset's folder, or names of weights.
        here = key == "dataset.path" or path.startswith("/")
        here |= key == "item.weights" and Path(path).exists()
        if path and here and not is_remote(path):
            folders[f"--config.{key}"] = path
    return Job(name, of_run, file, config, folders)


def _config(of_run: Sequence[str], given: dict[str, str]) -> ConfigDict:
    """Returns the config of a run, with the overrides of its flags."""
    known = flatten(load_config(given["config"]).to_dict())
    overrides = (re.fullmatch(r"(?:no)?config\.(.+)", flag) for flag in given)
    check_keys((override[1] for override in overrides if override), known)
    # The flags of `pixelrec train`, separate from those of the launcher.
    values = flags.FlagValues()
    for name in ("workdir", "verbosity"):
        flags.DEFINE_string(name, None, "", values)
    flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "", values)
    try:
        config = config_flags.DEFINE_config_file("config", None, "", values, sys_argv=list(of_run))
        values(["train", *with_files(of_run)])
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"after --, of the run: {error}; see pixelrec train --help") from None
    return config.value


def _replace(flag: str, changed: dict[str, str]) -> str:
    name, equals, value = flag.partition("=")
    return f"{name}{equals}{changed.get(name.lstrip('-'), value)}"
