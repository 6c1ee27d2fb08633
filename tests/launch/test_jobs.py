"""Runs of a launcher: names, folders, and refused flags."""

import pytest

from pixelrec_jax.launch import jobs
from pixelrec_jax.system.errors import UserError
from tests.launch.fakes import Fakes
from tests.tiny import ROOT

FILE = f"{ROOT}/configs/pixelrec.py"
RUN = [f"--config={FILE}:user=sasrec,dataset=toy", "--workdir=runs/all"]
CLOUD = [
    "--config=pixelrec:dataset=pixel200k",
    "--workdir=gs://b/r",
    "--config.dataset.path=gs://b/d",
]
GKE = "gke --name=a --image=i --topology=v5e:4x4"


def test_a_sweep_has_a_folder_and_a_name_for_each_encoder():
    every = jobs.jobs([*RUN, "--config.seed=1"], "first", ["swin_t", "clip_vit_b32"])
    assert [(job.name, job.workdir) for job in every] == [
        ("first-swin-t", "runs/all/swin_t"),
        ("first-clip-vit-b32", "runs/all/clip_vit_b32"),
    ]
    assert every[0].flags == (
        f"--config={FILE}:user=sasrec,dataset=toy,item=swin_t",
        "--workdir=runs/all/swin_t",
        "--config.seed=1",
    )
    assert jobs.names("first", ["swin_t", "clip_vit_b32"]) == [job.name for job in every]
    (plain,) = jobs.jobs([f"--config={FILE}", "--workdir=x/"], "first", ["swin_t"])
    assert plain.flags == (f"--config={FILE}:item=swin_t", "--workdir=x/swin_t")


def test_figure_9_is_nine_encoders_that_exist():
    every = jobs.jobs(RUN, "first", ["figure9"])
    assert len(every) == 9
    assert [job.workdir.rpartition("/")[2] for job in every] == list(jobs.FIGURE_9)
    assert len(jobs.names("first", ["figure9"], longest=44)) == 9
    assert jobs.encoders(["figure9", "id"]) == (*jobs.FIGURE_9, "id")
    with pytest.raises(UserError, match="names an encoder twice"):
        jobs.encoders(["figure9", "swin_t"])


def test_folders_are_those_of_the_config_unless_overridden():
    (job,) = jobs.jobs(RUN, "first", [])
    assert job.folders == {"--workdir": "runs/all", "--config.dataset.path": "data/toy"}
    given = ["--config.dataset.path=gs://b/toy", "--config.warm_start.run=/disk/run"]
    (job,) = jobs.jobs([*RUN, *given, "--workdir=gs://b/r"], "first", [])
    with pytest.raises(UserError, match=r"--config.warm_start.run=/disk/run; expected gs://BUCKET"):
        jobs.check_shared([job], ["/disks"], what="...")
    jobs.check_shared([job], ["/disk"], what="...")


def test_what_machines_copy_from_a_url_may_be_at_any():
    (job,) = jobs.jobs([*RUN, "--config.dataset.path=s3://b/toy", "--workdir=gs://b/r"], "a", [])
    jobs.check_shared([job], [], what="...")
    with pytest.raises(UserError, match="s3://b/r: runs are kept on the local disk or on gs://"):
        jobs.jobs([*RUN, "--workdir=s3://b/r"], "a", [])


@pytest.mark.parametrize(
    ("item", "key", "relative"),
    [("features", "item.path", "features.npy"), ("clip_vit_b32", "item.weights", "a/b")],
)
def test_files_of_items_are_shared_if_they_are_files_of_this_machine(item, key, relative):
    config = f"{RUN[0]},item={item}"
    for path, shared in (("/disk/x", True), ("https://h/x", False), (relative, False)):
        (job,) = jobs.jobs([config, RUN[1], f"--config.{key}={path}"], "first", [])
        assert job.folders.get(f"--config.{key}") == (path if shared else None)


def test_flags_of_the_run_may_be_those_of_main():
    known = [
        "--mode=evaluate",
        "--verbosity=info",
        "--noconfig.item.remat",
        "--config.eval.ks=(10,)",
    ]
    (job,) = jobs.jobs([*RUN, *known], "first", [])
    assert job.flags == (*RUN, *known)


@pytest.mark.parametrize(
    ("of_run", "sweep", "message"),
    [
        ([], [], "--config is missing; give the flags of the run after --"),
        (RUN[:1], [], "--workdir is missing"),
        ([*RUN, "stray"], [], "unexpected 'stray' after --"),
        ([*RUN, "--distributed=auto"], [], "but the launcher gives it; leave it out"),
        ([*RUN, "--config.optim.lrr=1"], [], "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        ([*RUN, "--noconfig.item.remit"], [], "no key 'item.remit'; did you mean 'item.remat'?"),
        ([*RUN, "--mdoe=evaluate"], [], "Unknown command line flag 'mdoe'. Did you mean: mode"),
        ([*RUN, "--mode=test"], [], "--mode=test: value should be one of <train|evaluate>"),
        ([*RUN, "--config.train.batch_size=abc"], [], "--config.train.batch_size=abc: invalid"),
        ([*RUN, "--config.train.batch_size=0"], [], "train.batch_size=0; expected 1 or more"),
        ([*RUN, "--flagfile=more"], [], "'--flagfile=more' after --; give flags of the run as"),
        (["--config", *RUN], [], "'--config' after --; give flags of the run as --name=value"),
        (["--config.seed=1", *RUN], [], "--config.seed=1 in argv before a value for --config"),
        ([f"--config={ROOT}/README.md", RUN[1]], [], "README.md' is not a config .SyntaxError"),
        (["--config=nowhere.py", RUN[1]], [], "the file 'nowhere.py' does not exist"),
        ([f"{RUN[0]},user=x", RUN[1]], [], "unknown user='x'"),
        (RUN, ["swin"], "unknown item='swin'; did you mean 'swin_"),
        (RUN, ["swin_t", "swin_t"], "names an encoder twice"),
        ([f"{RUN[0]},item=id", RUN[1]], ["swin_t"], "leave it out of --config"),
    ],
)
def test_runs_that_cannot_be_are_refused(of_run, sweep, message):
    with pytest.raises(UserError, match=message):
        jobs.jobs(of_run, "first", sweep)


@pytest.mark.parametrize("name", ["First", "1st", "a_b", "a-", "-a", "a.b", "", "a" * 64])
def test_names_that_google_cloud_refuses(name):
    with pytest.raises(UserError, match="expected a lower-case letter"):
        jobs.names(name, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gke --topology=v5e:4x4 --image=i -- RUN", "--name is missing; see --help"),
        ("gke --name=a --topology=v5e:4x4 -- RUN", "--image is missing; see --help"),
        ("gke --name=a --image=i -- RUN", "--topology is missing"),
        (
            "gke --name=a --image=i --topology=v5e:4x5 -- RUN",
            "no such slice; expected one of v5e:1x1",
        ),
        ("gke --name=a --image=i --topology=v5e:4x4 -- RUN", "--workdir=runs/all; expected gs://"),
        ("gke --name=a --image=i --topology=v5e:4x4 --mount=x -- RUN", "give CLAIM:/folder"),
        (
            "gke --name=a --image=i --topology=v5e:4x4 --mount=x:/d --mount=y:/d -- RUN",
            "--mount=y:/d: 'x' is mounted there already",
        ),
        (f"gke --name={'a' * 45} --do=delete", "at most 44 in all"),
        ("tpu --do=create --name=a --project=p", "--zone is missing"),
        ("tpu --do=create --name=a --zone=z", "--project is missing"),
        ("tpu --do=create --name=a --zone=z --project=p --topology=v7:4x4", "unknown TPU 'v7'"),
        (
            f"tpu --do=run --name=a --zone=z --project=p --topology=v5e:4x4 --shared=/d -- "
            f"--config={FILE} --workdir=/d/w --config.dataset.path=/d/d",
            "this file is not sent to the other machine",
        ),
        (
            "tpu --do=create --name=a --zone=z --project=p --topology=tpu7x:2x2x1 -- RUN",
            "Cloud TPU's own interface does not serve tpu7x; use pixelrec launch gke",
        ),
        ("tpu --do=start", "value should be one of"),
        (
            "gke --name=a --image=i --topology=v5e:2x4 --num_slices=2 -- RUN",
            "GKE joins only slices",
        ),
        ("gke --name=a --image=i --topology=v5e:4x4 --mount=x:/app/ -- RUN", "needs '/app/'"),
        ("tpu --do=create --name=a --zone=z --project=p -- RUN", "--topology is missing"),
        (
            "gke --name=a --image=i --topology=v5e:4x4 -- --config=benchmarks/../configs/"
            "pixelrec.py --config.dataset.path=gs://b/d --workdir=gs://b/r",
            "a file of this repository, below configs/",
        ),
        (
            "gke --name=a --image=i --topology=v5e:16x16 -- --config=pixelrec "
            "--config.dataset.path=gs://b/d --workdir=gs://b/r",
            "train.batch_size=64 is not divisible by the 256 data shards",
        ),
        (
            "slurm --nodes=2 -- --config=pixelrec --workdir=/d --config.mesh.fsdp=5",
            "mesh data=-1 fsdp=5 tensor=1 does not cover the 16 devices",
        ),
        (f"{GKE} --label=a -- CLOUD", "--label=a is malformed; give NAME=VALUE"),
        (f"{GKE} --label=a=b/c -- CLOUD", "--label=a=b/c is malformed"),
        (f"{GKE} --queue=a/b -- CLOUD", "--queue=a/b is not a name in Kubernetes"),
        (f"{GKE} --priority=high -- CLOUD", "--priority is Kueue's, which needs a queue"),
        (f"{GKE} --toleration=a=b -- CLOUD", "give KEY=VALUE:EFFECT or KEY:EFFECT"),
        (f"{GKE} --toleration=a:Never -- CLOUD", "with an effect of NoSchedule"),
        (f"{GKE} --patch=/no/file -- CLOUD", "--patch=/no/file cannot be read (FileNotFound"),
        (f"{GKE} --patch={ROOT}/Makefile -- CLOUD", "Makefile cannot be read ("),
        (f"{GKE} --patch={ROOT}/requirements.txt -- CLOUD", "is not a part of a manifest"),
        ("slurm --extra=account=me -- RUN", "expected options with their dashes"),
        ("slurm --nodes=0 -- RUN", "--nodes=0"),
        ("slurm --name=a,b -- RUN", "--name=a,b; expected letters"),
        ("slurm --nodes=2 -- RUN --config.dataset.path=/tmp/x", "is a folder of one node"),
        ("local RUN", "Unknown command line flag 'config'; flags of the run come after --"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, line, message):
    fakes = Fakes(tmp_path)
    for name in ("gcloud", "kubectl", "sbatch", "git"):
        fakes.add(name)
    for name, words in {"RUN": RUN, "CLOUD": CLOUD}.items():
        line = line.replace(name, " ".join(words))
    process = fakes.launch(*line.split())
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert len(process.stderr.splitlines()) == 1, process.stderr
    assert message in process.stderr
    assert not fakes.calls()
