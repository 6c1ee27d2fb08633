r"""Runs on TPU VMs, which are queued resources of Cloud TPU; a sweep has one for each encoder.

pixelrec launch tpu --do=create --name=first --project=P --zone=Z \
    --topology=v5e:4x4 -- \
    --config=pixelrec:user=sasrec,dataset=pixel200k \
    --config.dataset.path=gs://BUCKET/pixel200k --workdir=gs://BUCKET/runs/first

The same command with --do=run starts the run on the VMs. Other values of --do are status, logs,
recreate and delete. Needs gcloud, with a login.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pixelrec_jax.launch import jobs
from pixelrec_jax.launch.commands import (
    Command,
    define_common_flags,
    define_extra_flag,
    environment,
    execute,
    program,
    run,
)
from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent  # the clone, or the installed package
_CODE = "code.tar.gz"  # the archive of the code on the VMs
_UNIT = "pixelrec"  # the unit of systemd on the VMs
_EVERYWHERE = ("--node=all", "--worker=all")


def _gcloud(verb: str, *arguments: str) -> Command:
    """Returns a command of `gcloud compute tpus queued-resources`."""
    values = flags.FLAGS
    where = (f"--project={values.project}", f"--zone={values.zone}")
    return Command(("gcloud", "compute", "tpus", "queued-resources", verb, *arguments, *where))


def _create(name: str, on: Slice) -> Command:
    values = flags.FLAGS
    nodes = (f"--node-count={values.num_slices}", f"--node-prefix={name}")
    return _gcloud(
        "create",
        name,
        *(nodes if values.num_slices > 1 else (f"--node-id={name}",)),
        f"--accelerator-type={on.accelerator_type}",
        f"--runtime-version={values.runtime_version or on.runtime}",
        *(("--spot",) if values.spot else ()),
        *values.extra,
    )


def _run(job: jobs.Job, on: Slice) -> list[Command]:
    """Returns the commands that copy the code to every host and start the run there."""
    distributed = ["--distributed=auto"] if on.hosts * flags.FLAGS.num_slices > 1 else []
    variables = [f"{name}={value}" for name, value in environment().items()]
    arguments = shlex.join([*variables, *job.flags, *distributed])
    launch = "launch" if _is_clone() else "pixelrec_jax/launch"
    start = (
        # A run in progress saves its step before its code is removed.
        f"sudo systemctl stop {_UNIT} 2> /dev/null; rm -rf pixelrec && mkdir pixelrec && "
        f"tar -xzf {_CODE} -C pixelrec && cd pixelrec && "
        f"bash {launch}/tpu_vm.sh {_UNIT} {arguments}"
    )
    return [
        _gcloud("scp", str(_packed()), f"{job.name}:{_CODE}", *_EVERYWHERE),
        _gcloud("ssh", job.name, *_EVERYWHERE, f"--command={start}"),
    ]


def _is_clone() -> bool:
    return (_ROOT / "pyproject.toml").exists()


def _packed() -> Path:
    """Returns the path of the archive of the code on this machine."""
    return Path.home() / ".cache" / "pixelrec" / _CODE


def _prepare(every: Sequence[jobs.Job], *, pack: bool, dry_run: bool) -> None:
    """Packs the code; of a clone only committed code, so that the commit says what ran.

    Raises:
      UserError: files or changes are not committed.
    """
    steps = _of_clone(every, pack=pack) if _is_clone() else _of_package(every, pack=pack)
    for command, error in steps.items():
        if dry_run:
            print(f"{command} || exit")
        elif run(command):
            raise UserError(error)


def _of_clone(every: Sequence[jobs.Job], *, pack: bool) -> dict[Command, str]:
    """Returns the commands that check and pack a clone, with the error if one fails."""
    jobs.check_config_travels(every)
    git, steps = ("git", "-C", str(_ROOT)), {}
    if configs := jobs.own_configs(every):
        steps[Command((*git, "ls-files", "--error-unmatch", "--", *configs))] = (
            f"{' '.join(configs)} is not committed, but only committed code runs; commit it"
        )
    if not pack:
        return steps
    clean = f'test -z "$({shlex.join((*git, "status", "--porcelain"))})"'
    steps[Command(("sh", "-c", clean))] = (
        "there are changes or files that are not committed, but only committed code runs; commit "
        "them"
    )
    archive = (*git, "archive", "--format=tar.gz", f"--output={_packed()}", "HEAD")
    return steps | _folder() | {Command(archive): "git cannot pack the code; see above"}


def _of_package(every: Sequence[jobs.Job], *, pack: bool) -> dict[Command, str]:
    """Returns the commands that pack the installed package, with the error if one fails."""
    if configs := jobs.own_configs(every):
        raise UserError(
            f"--config={configs[0]}: this file is not sent to the other machine; give "
            "pixelrec:words and change keys with --config.key=value, or start this in a clone"
        )
    if not pack:
        return {}
    # The package, and its metadata with the list of packages that it needs.
    names = [
        _ROOT.name,
        *sorted(path.name for path in _ROOT.parent.glob(f"{_ROOT.name}-*.dist-info")),
    ]
    tar = ("tar", "-czf", str(_packed()), "-C", str(_ROOT.parent), "--exclude=__pycache__", *names)
    return _folder() | {Command(tar): "tar cannot pack the package; see above"}


def _folder() -> dict[Command, str]:
    folder = _packed().parent
    return {Command(("mkdir", "-p", str(folder))): f"{folder} cannot be created; see above"}


def _status(name: str) -> Command:
    return _gcloud("describe", name, "--format=value(state.state)")


def _delete(name: str) -> Command:
    """Returns the command that deletes a queued resource with its VMs, without a question."""
    return _gcloud("delete", name, "--force", "--quiet")


def _logs(name: str) -> Command:
    """Returns the command that shows the log of process 0, which reports on the run."""
    follow = "" if flags.FLAGS.sweep else " --follow"
    show = f"sudo journalctl --unit={_UNIT} --lines=50 --no-pager{follow}"
    return _gcloud("ssh", name, "--node=0", "--worker=0", f"--command={show}")


def main(of_run: Sequence[str]) -> None:
    """Creates, lists, uses or deletes the queued resources, as --do says."""
    values = flags.FLAGS
    names = jobs.names(values.name, values.sweep)
    if values.do in ("status", "logs", "delete"):
        command = {"status": _status, "logs": _logs, "delete": _delete}[values.do]
        execute({name: [command(name)] for name in names}, dry_run=values.dry_run)
        return
    # Everything that the run needs is checked before its VMs cost money.
    on = Slice.parse(values.topology)
    if not on.runtime:
        raise UserError(
            f"--topology={values.topology}: Cloud TPU's own interface does not serve "
            f"{on.generation}; use pixelrec launch gke"
        )
    every = jobs.jobs(of_run, values.name, values.sweep)
    jobs.check_shared(every, values.shared, what="a folder that --shared names")
    jobs.check_devices(every, on.devices * values.num_slices, slices=values.num_slices)
    steps = {
        "create": lambda job: [_create(job.name, on)],
        "recreate": lambda job: [_delete(job.name), _create(job.name, on)],
        "run": lambda job: _run(job, on),
    }[values.do]
    commands = {job.name: steps(job) for job in every}
    _prepare(every, pack=values.do == "run", dry_run=values.dry_run)
    execute(commands, dry_run=values.dry_run)
    if values.do == "run":
        print(f"# The table, when they have finished: {jobs.report(every)}")
    print("# What is not deleted costs money: --do=delete")


def define_flags() -> None:
    """Defines the flags of this program."""
    verbs = ["create", "status", "run", "logs", "recreate", "delete"]
    flags.DEFINE_enum("do", None, verbs, "recreate is for VMs that were taken away", required=True)
    flags.DEFINE_string("name", None, "name of the queued resource", required=True)
    flags.DEFINE_string("project", None, "project of Google Cloud", required=True)
    flags.DEFINE_string("zone", None, "zone of Google Cloud, as in us-west4-a", required=True)
    flags.DEFINE_string("topology", "", "TPU slice, as in v5e:4x4 or v5litepod-16")
    flags.DEFINE_integer("num_slices", 1, "slices of each run", 1)
    flags.DEFINE_bool("spot", False, "cheaper machines that may be taken away")
    flags.DEFINE_string("runtime_version", "", "software of the VMs; default that of the TPU")
    flags.DEFINE_multi_string("shared", [], "folder that all hosts share")
    define_extra_flag("create", "--extra=--reserved")
    define_common_flags()


if __name__ == "__main__":
    define_flags()
    program(main)
