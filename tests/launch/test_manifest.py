"""JobSets fit the API of JobSet and of Kubernetes, as kubeflow-trainer-api describes it."""

import re

import pytest
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from ml_collections import ConfigDict
from pydantic import ValidationError

from pixelrec_jax.launch.gke import manifest
from pixelrec_jax.launch.jobs import Job
from pixelrec_jax.launch.slices import Slice

FOLDERS = {"--workdir": "gs://b/r"}
JOB = Job("first", ("--config=c.py:item=id", "--workdir=gs://b/r"), "c.py", ConfigDict(), FOLDERS)


def check(jobset):
    """Raises if a value has a wrong type; fields that the API does not have would get lost."""
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def pods(jobset):
    (of_slice,) = jobset["spec"]["replicatedJobs"]
    return of_slice["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:4x4", "v5p:4x4x4", "v6e:16x16", "v4:2x2x1"])
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
