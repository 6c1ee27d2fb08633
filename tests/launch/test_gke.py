"""JobSets fit the API of JobSet and of Kubernetes, as kubeflow-trainer-api describes it."""

import re

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from ml_collections import ConfigDict
from pydantic import ValidationError

from pixelrec_jax.launch.jobs import Job
from pixelrec_jax.launch.jobset import manifest, patched
from pixelrec_jax.launch.slices import Slice
from tests.launch.lines import ENCODERS, GKE, RUN, SWEEP, flags_of, options

FOLDERS = {"--workdir": "gs://b/r"}
JOB = Job("first", ("--config=c.py:item=id", "--workdir=gs://b/r"), "c.py", ConfigDict(), FOLDERS)


def check(jobset):
    """Raises if a value has a wrong type; fields that the API does not have would get lost."""
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def pods(jobset):
    (of_slice,) = jobset["spec"]["replicatedJobs"]
    return of_slice["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "topology", ["v5e:1x1", "v5e:4x4", "v5p:4x4x4", "v6e:16x16", "v4:2x2x1", "tpu7x:4x4x4"]
)
@pytest.mark.parametrize("spot", [False, True])
def test_jobsets_fit_the_api(topology, spot):
    jobset = manifest(
        JOB,
        Slice.parse(topology),
        image="reg/img:1",
        num_slices=2,
        restarts=20,
        spot=spot,
        claims={"/data": "disk", "/runs": "other"},
        service_account="me",
        variables={"A": "1", "B": ""},
        labels={"team": "a"},
        queue={"kueue.x-k8s.io/queue-name": "q"},
        tolerations=[{"key": "a", "operator": "Exists", "effect": "NoExecute"}],
    )
    check(jobset)
    assert pods(jobset)["serviceAccountName"] == "me"


def test_what_does_not_fit_the_api_is_noticed():
    jobset = manifest(JOB, Slice.parse("v5e:4x4"), image="img")
    pods(jobset)["tolerances"] = []
    with pytest.raises(AssertionError):
        check(jobset)
    jobset = manifest(JOB, Slice.parse("v5e:4x4"), image="img", restarts="many")
    with pytest.raises(ValidationError):
        check(jobset)


def test_every_chip_of_a_slice_has_one_pod():
    of_hosts = {("v5e:2x4", 1): (1, 8), ("v5e:4x4", 3): (4, 4), ("v5p:2x2x2", 3): (2, 4)}
    for (topology, slices), (hosts, chips) in of_hosts.items():
        jobset = manifest(JOB, Slice.parse(topology), image="img", num_slices=slices)
        (of_slice,) = jobset["spec"]["replicatedJobs"]
        assert of_slice["replicas"] == slices
        job = of_slice["template"]["spec"]
        assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
        (container,) = pods(jobset)["containers"]
        assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_only_slices_of_several_hosts_have_a_node_pool_of_their_own():
    for topology, alone in (("v5e:2x4", False), ("v5e:4x4", True)):
        jobset = manifest(JOB, Slice.parse(topology), image="img")
        assert ("annotations" in jobset["metadata"]) == alone


def test_kubernetes_leaves_the_flags_as_they_are():
    hard = ("--a=$(HOME)", "--b=$HOME", "--c=$$(HOME)", "--d=$", "--e=(x)")
    jobset = manifest(
        Job("first", hard, "c.py", ConfigDict(), FOLDERS), Slice.parse("v5e:1x1"), image="img"
    )
    (container,) = pods(jobset)["containers"]
    # It takes $$ for $, and $(NAME) for a variable.
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", flag) for flag in container["args"])
    assert tuple(flag.replace("$$", "$") for flag in container["args"]) == hard


def test_variables_are_those_of_the_run(fakes):
    hard = {"A": "$(HOME) $HOME $$ $", "B": "a\nb", "C": ""}
    (jobset,) = applied(fakes, *(f"--env={name}={value}" for name, value in hard.items()), *RUN)
    (container,) = pods(jobset)["containers"]
    given = {x["name"]: x["value"].replace("$$", "$") for x in container["env"]}
    assert given == hard
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", x["value"]) for x in container["env"])


def test_a_queue_of_kueue_takes_the_jobset(fakes):
    options = ["--queue=team-queue", "--priority=high", "--label=team=vision"]
    (jobset,) = applied(fakes, *options, *RUN)
    labels = {
        "team": "vision",
        "kueue.x-k8s.io/queue-name": "team-queue",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert jobset["metadata"]["labels"] == labels
    (of_slice,) = jobset["spec"]["replicatedJobs"]
    pod = of_slice["template"]["spec"]["template"]["metadata"]
    assert pod["labels"] == {"team": "vision"}  # Kueue manages the JobSet, not its pods


def test_tolerations_add_to_that_of_spot_nodes(fakes):
    options = ["--spot", "--toleration=team=vision:NoSchedule", "--toleration=new:NoExecute"]
    (jobset,) = applied(fakes, *options, *RUN)
    spot, *others = pods(jobset)["tolerations"]
    assert spot["key"] == "cloud.google.com/gke-spot"
    assert others == [
        {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"},
        {"key": "new", "operator": "Exists", "effect": "NoExecute"},
    ]


PATCH = """
metadata: {annotations: {owner: me}}
spec:
  replicatedJobs:
  - name: slice
    template:
      spec:
        template:
          spec:
            priorityClassName: high
            terminationGracePeriodSeconds: null
            containers:
            - name: train
              imagePullPolicy: Always
              volumeMounts: [{name: scratch, mountPath: /scratch}]
            volumes: [{name: scratch, emptyDir: {}}]
"""


def test_a_patch_of_the_manifest_is_merged_by_names(fakes, tmp_path):
    (before,) = applied(fakes, *RUN)
    (tmp_path / "patch.yaml").write_text(PATCH)
    (jobset,) = applied(fakes, f"--patch={tmp_path}/patch.yaml", *RUN)
    pool = before["metadata"]["annotations"]
    assert jobset["metadata"]["annotations"] == {**pool, "owner": "me"}
    expected, pod = pods(before), pods(jobset)
    assert pod["priorityClassName"] == "high"
    assert expected.pop("terminationGracePeriodSeconds")
    assert "terminationGracePeriodSeconds" not in pod
    (container,) = pod["containers"]
    assert container["imagePullPolicy"] == "Always"
    memory, scratch = container["volumeMounts"]
    assert [memory] == expected["containers"][0]["volumeMounts"]
    assert scratch == {"name": "scratch", "mountPath": "/scratch"}
    assert [volume["name"] for volume in pod["volumes"]] == ["memory", "scratch"]
    for key in ("image", "args", "resources"):
        assert container[key] == expected["containers"][0][key]


def test_a_patch_takes_over_what_has_no_names():
    assert patched({"args": ["a"], "x": 1, "y": {"z": 2}}, {"args": ["b"], "y": {"z": None}}) == {
        "args": ["b"],
        "x": 1,
        "y": {},
    }


def test_claims_are_mounted():
    claims = {"/data": "disk", "/runs": "other"}
    pod = pods(manifest(JOB, Slice.parse("v5e:1x1"), image="img", claims=claims))
    claim_of = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounted = {
        mount["mountPath"]: claim_of[mount["name"]]
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] in claim_of
    }
    assert mounted == claims


def applied(fakes, *arguments: str) -> list[dict]:
    """The JobSets that the launcher gives to kubectl."""
    fakes.add("kubectl")
    assert fakes.launch(*GKE, *arguments).returncode == 0
    calls = fakes.calls()
    assert [argv for argv, _ in calls] == [["kubectl", "apply", "--filename=-"]] * len(calls)
    jobsets = [yaml.safe_load(text) for _, text in calls]
    for jobset in jobsets:
        check(jobset)
    return jobsets


def test_all_of_a_run_starts_again_unless_its_input_is_wrong(fakes):
    (jobset,) = applied(fakes, "--restarts=3", *RUN)
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "first")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (of_set,) = policy["rules"]
    assert of_set["action"] == "FailJobSet"
    assert of_set["onJobFailureReasons"] == ["PodFailurePolicy"]
    (of_slice,) = jobset["spec"]["replicatedJobs"]
    job = of_slice["template"]["spec"]
    (of_job,) = job["podFailurePolicy"]["rules"]
    assert of_job["action"] == "FailJob"
    (container,) = pods(jobset)["containers"]
    codes = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert of_job["onExitCodes"] == codes
    assert job["completionMode"] == "Indexed"  # a pod has a number, by which it finds the others
    assert pods(jobset)["restartPolicy"] == "Never"
    assert pods(jobset)["terminationGracePeriodSeconds"] == 120  # to save


@pytest.mark.parametrize("spot", [False, True])
def test_a_pod_trains_on_the_chips_of_its_host(fakes, spot):
    (jobset,) = applied(fakes, *(["--spot"] if spot else []), *RUN[:-1])
    pod, of_google = pods(jobset), "cloud.google.com/gke-"
    selected = {
        f"{of_google}tpu-accelerator": "tpu-v5-lite-podslice",
        f"{of_google}tpu-topology": "4x4",
        **({f"{of_google}spot": "true"} if spot else {}),
    }
    assert pod["nodeSelector"] == selected
    tolerated = {"key": f"{of_google}spot", "operator": "Equal", "value": "true"}
    expected = [{**tolerated, "effect": "NoSchedule"}] if spot else []
    assert pod.get("tolerations", []) == expected
    (container,) = pod["containers"]
    assert container["image"] == "reg/img:1"
    assert container["command"] == ["python", "-m", "pixelrec_jax", "train"]
    assert container["args"] == [*flags_of()[:-1], "--distributed=auto"]
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    assert container["securityContext"] == {"privileged": True}  # chips read locked memory
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/dev/shm", volume["name"])
    assert volume["emptyDir"] == {"medium": "Memory"}


def test_a_sweep_is_a_jobset_for_each_encoder(fakes):
    jobsets = applied(fakes, SWEEP, *RUN)
    for jobset, encoder in zip(jobsets, ENCODERS, strict=True):
        assert jobset["metadata"]["name"] == f"first-{encoder.replace('_', '-')}"
        pool = "cloud.google.com/gke-nodepool"
        assert list(jobset["metadata"]["annotations"].values()) == [pool]
        (container,) = pods(jobset)["containers"]
        arguments = [argument.replace("$$", "$") for argument in container["args"]]
        assert arguments == [*flags_of(encoder), "--distributed=auto"]


def test_state_log_and_end_are_those_of_the_jobset(fakes):
    fakes.add("kubectl")
    for verb, words in {"status": ["get"], "delete": ["delete"], "logs": ["logs"]}.items():
        fakes.launch("gke", "--name=first", "--namespace=mine", f"--do={verb}")
        ((argv, _),) = fakes.calls()
        given = options(argv)
        assert given.pop("--namespace") == "mine"
        named = [word for word in argv[1:] if not word.startswith("--")]
        assert named == (words if verb == "logs" else [*words, "jobset", "first"])
    selected = dict(term.split("=") for term in given["--selector"].split(","))
    assert selected == {  # the first process
        "jobset.sigs.k8s.io/jobset-name": "first",
        "jobset.sigs.k8s.io/job-index": "0",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    assert "--follow" in given
