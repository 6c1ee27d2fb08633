"""The manifest of a run on GKE, and its patches."""

from collections.abc import Mapping, Sequence
from typing import Any

from pixelrec_jax.launch.jobs import Job
from pixelrec_jax.launch.slices import Slice

JOBSET = "jobset.sigs.k8s.io"
_SAVING = 120  # seconds for saving when a node is drained; Spot VMs give 15 to 30
_SPOT = {
    "key": "cloud.google.com/gke-spot",
    "operator": "Equal",
    "value": "true",
    "effect": "NoSchedule",
}


def manifest(
    job: Job,
    on: Slice,
    *,
    image: str,
    num_slices: int = 1,
    restarts: int = 0,
    spot: bool = False,
    claims: Mapping[str, str] | None = None,
    service_account: str = "",
    variables: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    queue: Mapping[str, str] | None = None,
    tolerations: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Returns the JobSet (v1alpha2) of a run: a job for each slice, a pod for each of its hosts.

    Args:
      job: the run.
      on: the slice.
      image: the container image.
      num_slices: number of slices, all alike.
      restarts: how often a run is started again that lost a process.
      spot: whether the nodes may be taken away.
      claims: persistent volume claims by the folder that each is mounted to.
      service_account: the Kubernetes account of the pods; "" for the default one.
      variables: environment variables of the run.
      labels: labels of the JobSet and of its pods.
      queue: labels of the JobSet alone, by which a queue manages it.
      tolerations: taints of nodes that do not keep the pods away, beside that of spot nodes.
    """
    claims = claims or {}
    volumes = {f"claim-{number}": path for number, path in enumerate(claims)}
    arguments = list(map(_literal, job.flags))
    if on.hosts * num_slices > 1:
        arguments.append("--distributed=auto")
    chips = on.chips // on.hosts
    container: dict[str, Any] = {
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
    if variables:
        container["env"] = [
            {"name": name, "value": _literal(value)} for name, value in variables.items()
        ]
    pod: dict[str, Any] = {
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
        pod["nodeSelector"][_SPOT["key"]] = _SPOT["value"]
    if every := [*([_SPOT] if spot else []), *tolerations]:
        pod["tolerations"] = [dict(toleration) for toleration in every]
    of_slice: dict[str, Any] = {
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
    metadata: dict[str, Any] = {"name": job.name}
    if labels:
        of_slice["template"]["metadata"] = {"labels": dict(labels)}
    if labels or queue:
        metadata["labels"] = {**(labels or {}), **(queue or {})}
    if on.hosts > 1:
        # A slice of several hosts is a node pool, and each job needs its own.
        pool = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {f"alpha.{JOBSET}/exclusive-topology": pool}
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


def _literal(text: str) -> str:
    return text.replace("$", "$$")  # Kubernetes expands $(NAME), and takes $$ for $


def patched(value: Any, patch: Any) -> Any:
    """Returns a part of a manifest with a patch, as kubectl's strategic merge does it.

    Mappings are merged, and null removes an entry. So are lists of entries with names, each by its
    name, those of volume mounts by path. Everything else takes the value of the patch.
    """
    if isinstance(value, dict) and isinstance(patch, dict):
        merged = {key: patched(value.get(key), part) for key, part in patch.items()}
        return {key: part for key, part in (value | merged).items() if part is not None}
    if isinstance(value, list) and isinstance(patch, list):
        for key in ("mountPath", "name"):
            if patch and all(isinstance(x, dict) and key in x for x in [*value, *patch]):
                known = {entry[key]: entry for entry in value}
                parts = {entry[key]: patched(known.get(entry[key]), entry) for entry in patch}
                return list((known | parts).values())
    return patch
