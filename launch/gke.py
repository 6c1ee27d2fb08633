r"""Runs on TPU slices of a GKE cluster, as JobSets; a sweep is a JobSet for each encoder.

pixelrec launch gke --name=first --topology=v5e:4x4 --image=HOST/PROJECT/... -- \
    --config=pixelrec:user=sasrec,dataset=pixel200k \
    --config.dataset.path=gs://BUCKET/pixel200k --workdir=gs://BUCKET/runs/first

Needs kubectl with the cluster as its context, and JobSet in the cluster (docs/launch.md).
"""

from collections.abc import Sequence
from typing import Any

import yaml
from absl import flags

from pixelrec_jax.launch import jobs
from pixelrec_jax.launch.commands import Command, define_common_flags, execute, program
from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError

_SAVING = 120  # seconds for saving when a node is drained; Spot VMs give 15 to 30
_JOBSET = "jobset.sigs.k8s.io"
_OCCUPIED = ("", "/app", "/dev/shm")  # folders of launch/Dockerfile and of the manifest


def manifest(
    job: jobs.Job,
    on: Slice,
    *,
    image: str,
    num_slices: int = 1,
    restarts: int = 0,
    spot: bool = False,
    claims: dict[str, str] | None = None,
    service_account: str = "",
) -> dict[str, Any]:
    """Returns the JobSet (v1alpha2) of a run: a job for each slice, a pod for each of its hosts.

    `claims` are persistent volume claims by the folder that each is mounted to.
    """
    claims = claims or {}
    volumes = {f"claim-{number}": path for number, path in enumerate(claims)}
    arguments = [flag.replace("$", "$$") for flag in job.flags]  # Kubernetes expands $(NAME)
    if on.hosts * num_slices > 1:
        arguments.append("--distributed=auto")
    chips = on.chips // on.hosts
    container = {
        "name": "train",
        "image": image,
        "command": ["python", "-m", "pixelrec_jax", "train"],
        "args": arguments,
        # The chips read locked memory, and need more of it than an unprivileged container may lock:
        # https://cloud.google.com/kubernetes-engine/docs/how-to/tpus#privileged-mode
        "securityContext": {"privileged": True},
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
        "volumeMounts": [
            {"name": "memory", "mountPath": "/dev/shm"},
            *({"name": name, "mountPath": path} for name, path in volumes.items()),
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _SAVING,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": on.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": on.topology,
        },
        "containers": [container],
        # Workers pass decoded images in shared memory; a pod has only 64 MB by default.
        "volumes": [
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": claims[path]}}
                for name, path in volumes.items()
            ),
        ],
    }
    if service_account:
        pod["serviceAccountName"] = service_account
    if spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    of_slice = {
        "parallelism": on.hosts,
        "completions": on.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost pod ends the job, so that all processes restart together
        # Wrong input (exit code 2) would fail again: it ends the run at once.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]},
                }
            ]
        },
        "template": {"spec": pod},
    }
    metadata = {"name": job.name}
    if on.hosts > 1:
        # A slice of several hosts is a node pool, and each job needs its own.
        pool = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {f"alpha.{_JOBSET}/exclusive-topology": pool}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": restarts,
                "rules": [
                    {
                        "name": "wrongInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": num_slices, "template": {"spec": of_slice}}
            ],
        },
    }


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
    jobs.check_devices(every, on.chips * values.num_slices, slices=values.num_slices)
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
        )
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
        f"{_JOBSET}/jobset-name": name,
        f"{_JOBSET}/job-index": 0,
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
    define_common_flags()
    flags.DEFINE_enum("do", "create", ["create", "status", "logs", "delete"], "what to do")
    flags.DEFINE_string("name", None, "name of the JobSet", required=True)
    flags.DEFINE_string("topology", "", "TPU slice, as in v5e:4x4")
    flags.DEFINE_integer("num_slices", 1, "slices of each run", 1)
    flags.DEFINE_string("image", "", "container image, built with launch/Dockerfile")
    flags.DEFINE_bool("spot", False, "cheaper machines that may be taken away")
    flags.DEFINE_integer("restarts", 20, "how often an interrupted run is continued", 0)
    flags.DEFINE_multi_string("mount", [], "CLAIM:/folder, a persistent volume claim; repeatable")
    flags.DEFINE_string("service_account", "", "Kubernetes account that may use the buckets")
    flags.DEFINE_string("namespace", "", "namespace; default that of kubectl's context")


if __name__ == "__main__":
    define_flags()
    program(main)
