r"""Runs on TPU slices of a GKE cluster, as JobSets; a sweep is a JobSet for each encoder.

pixelrec launch gke --name=first --topology=v5e:4x4 --image=HOST/PROJECT/... -- \
    --config=pixelrec:user=sasrec,dataset=pixel200k \
    --config.dataset.path=gs://BUCKET/pixel200k --workdir=gs://BUCKET/runs/first

Needs kubectl with the cluster as its context, and JobSet in the cluster (docs/launch.md).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from absl import flags

from pixelrec_jax.launch import jobs
from pixelrec_jax.launch.commands import (
    Command,
    define_common_flags,
    environment,
    execute,
    program,
)
from pixelrec_jax.launch.jobset import JOBSET, manifest, patched
from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.storage import expand_user

_KUEUE = "kueue.x-k8s.io"  # https://kueue.sigs.k8s.io/docs/tasks/run/jobsets/
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # a value or name in Kubernetes
_KEY = rf"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_WORD}"
_OCCUPIED = ("", "/app", "/dev/shm")  # folders of launch/Dockerfile and of the manifest


def _claims(mounts: Sequence[str]) -> dict[str, str]:
    claims = {}
    for mount in mounts:
        claim, _, path = mount.partition(":")
        if not claim or not path.startswith("/") or ".." in path:
            raise UserError(f"--mount={mount} is malformed; give CLAIM:/folder")
        if path.rstrip("/") in _OCCUPIED:
            raise UserError(f"--mount={mount}: the image needs {path!r}; give another folder")
        if path in claims:
            raise UserError(
                f"--mount={mount}: {claims[path]!r} is mounted there already; give another folder"
            )
        claims[path] = claim
    return claims


def _labels() -> dict[str, str]:
    """Returns the labels that --label gives."""
    labels = {}
    for given in flags.FLAGS.label:
        name, equals, value = given.partition("=")
        if not equals or not re.fullmatch(_KEY, name) or not re.fullmatch(f"({_WORD})?", value):
            raise UserError(f"--label={given} is malformed; give NAME=VALUE, as in --label=team=a")
        labels[name] = value
    return labels


def _queue() -> dict[str, str]:
    """Returns the labels by which Kueue queues a JobSet."""
    values, labels = flags.FLAGS, {}
    for flag, name in (("queue", "queue-name"), ("priority", "priority-class")):
        if value := values[flag].value:
            if not re.fullmatch(_WORD, value):
                raise UserError(f"--{flag}={value} is not a name in Kubernetes")
            labels[f"{_KUEUE}/{name}"] = value
    if values.priority and not values.queue:
        raise UserError("--priority is Kueue's, which needs a queue; give --queue=NAME")
    return labels


def _tolerations() -> list[dict[str, str]]:
    """Returns the tolerations that the flags give in kubectl's form of taints."""
    tolerations = []
    for given in flags.FLAGS.toleration:
        taint, _, effect = given.rpartition(":")
        key, equals, value = taint.partition("=")
        known = effect in _EFFECTS and re.fullmatch(_KEY, key)
        if not known or not re.fullmatch(f"({_WORD})?", value):
            raise UserError(
                f"--toleration={given} is malformed; give KEY=VALUE:EFFECT or KEY:EFFECT, with an "
                f"effect of {', '.join(_EFFECTS)}"
            )
        operator = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
        tolerations.append({"key": key, **operator, "effect": effect})
    return tolerations


def _patches() -> list[dict[str, Any]]:
    """Returns the content of the files that --patch names."""
    patches = []
    for name in flags.FLAGS.patch:
        try:
            patch = yaml.safe_load(Path(expand_user(name)).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--patch={name} cannot be read ({reason(error)})") from None
        if not isinstance(patch, dict):
            raise UserError(f"--patch={name} is not a part of a manifest; see docs/launch.md")
        patches.append(patch)
    return patches


def _create(of_run: Sequence[str]) -> None:
    values = flags.FLAGS
    if not values.image:
        raise UserError("--image is missing; see --help")
    on, claims = Slice.parse(values.topology), _claims(values.mount)
    if values.num_slices > 1 and on.hosts == 1:
        raise UserError(
            f"--num_slices={values.num_slices}: GKE joins only slices of several hosts, but "
            f"{values.topology} has one host; give a larger --topology"
        )
    every = jobs.jobs(of_run, values.name, values.sweep)
    jobs.check_shared(every, list(claims), what="a folder that --mount=CLAIM:/folder names")
    jobs.check_config_travels(every, folder="configs")  # launch/Dockerfile copies this folder
    jobs.check_devices(every, on.devices * values.num_slices, slices=values.num_slices)
    patches = _patches()
    commands = {}
    for job in every:
        jobset = manifest(
            job,
            on,
            image=values.image,
            num_slices=values.num_slices,
            restarts=values.restarts,
            spot=values.spot,
            claims=claims,
            service_account=values.service_account,
            variables=environment(),
            labels=_labels(),
            queue=_queue(),
            tolerations=_tolerations(),
        )
        for patch in patches:
            jobset = patched(jobset, patch)
        text = yaml.safe_dump(jobset, sort_keys=False, width=1000)
        commands[job.name] = [Command((*_kubectl(), "apply", "--filename=-"), text)]
    execute(commands, dry_run=values.dry_run)
    print(f"# The table, when they have finished: {jobs.report(every)}")


def _kubectl() -> tuple[str, ...]:
    namespace = flags.FLAGS.namespace
    return ("kubectl", f"--namespace={namespace}") if namespace else ("kubectl",)


def _logs(name: str) -> Command:
    """Returns the command that shows the log of process 0, which reports on the run."""
    pod = {
        f"{JOBSET}/jobset-name": name,
        f"{JOBSET}/job-index": 0,
        "batch.kubernetes.io/job-completion-index": 0,
    }
    selector = ",".join(f"{key}={value}" for key, value in pod.items())
    follow = () if flags.FLAGS.sweep else ("--follow",)
    return Command((*_kubectl(), "logs", f"--selector={selector}", "--tail=50", *follow))


def main(of_run: Sequence[str]) -> None:
    """Creates, lists, follows or deletes the JobSets, as --do says."""
    values = flags.FLAGS
    # The names of pods end in -slice-<slice>-<host>-<five letters>.
    last = f"-slice-{values.num_slices}-9999-abcde"
    names = jobs.names(values.name, values.sweep, longest=63 - len(last))
    if values.do == "create":
        _create(of_run)
        return
    commands = {
        "status": lambda name: Command((*_kubectl(), "get", "jobset", name)),
        "logs": _logs,
        "delete": lambda name: Command((*_kubectl(), "delete", "jobset", name)),
    }
    execute({name: [commands[values.do](name)] for name in names}, dry_run=values.dry_run)


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_enum("do", "create", ["create", "status", "logs", "delete"], "what to do")
    flags.DEFINE_string("name", None, "name of the JobSet", required=True)
    flags.DEFINE_string("topology", "", "TPU slice, as in v5e:4x4 or v5litepod-16")
    flags.DEFINE_integer("num_slices", 1, "slices of each run", 1)
    flags.DEFINE_string("image", "", "container image, built with launch/Dockerfile")
    flags.DEFINE_bool("spot", False, "cheaper machines that may be taken away")
    flags.DEFINE_integer("restarts", 20, "how often an interrupted run is continued", 0)
    flags.DEFINE_multi_string("mount", [], "CLAIM:/folder, a persistent volume claim")
    flags.DEFINE_string("service_account", "", "Kubernetes account that may use the buckets")
    flags.DEFINE_string("queue", "", "Kueue's local queue; needed if the cluster has Kueue")
    flags.DEFINE_string("priority", "", "Kueue's WorkloadPriorityClass")
    flags.DEFINE_multi_string("label", [], "NAME=VALUE, a label of JobSet and pods")
    flags.DEFINE_multi_string(
        "toleration", [], "KEY=VALUE:EFFECT, a taint of nodes that is tolerated"
    )
    flags.DEFINE_multi_string(
        "patch", [], "YAML file with a part of the manifest, which is merged into it"
    )
    flags.DEFINE_string("namespace", "", "namespace; default that of kubectl's context")
    define_common_flags()


if __name__ == "__main__":
    define_flags()
    program(main)
