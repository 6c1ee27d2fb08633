"""What the launchers start: exactly what they print, with every flag of the run unchanged."""

import os
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.launch.fakes import Fakes
from tests.tiny import ROOT

CONFIG = "--config=pixelrec:user=sasrec,dataset=pixel200k"
# A value that a shell would take apart.
HARD = '--config.warm_start.run=gs://b/it\'s $HOME "a" \\ b;c'
RUN = ["--", CONFIG, "--config.dataset.path=gs://b/data", "--workdir=gs://b/runs", HARD]
GKE = ["gke", "--name=first", "--topology=v5e:4x4", "--image=reg/img:1"]
TPU = ["tpu", "--name=first", "--project=p", "--zone=z-a", "--topology=v5e:4x4"]
SLURM = ["slurm", "--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--python=/env/bin/python"]
SWEEP = "--sweep=swin_t,clip_vit_b32"


def flags_of(encoder=""):
    """The flags of a run, as `pixelrec train` has to get them."""
    if not encoder:
        return RUN[1:]
    return [f"{CONFIG},item={encoder}", RUN[2], f"--workdir=gs://b/runs/{encoder}", HARD]


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def test_slurm_prints_what_it_submits(fakes):
    process = fakes.launch(*SLURM, "--extra=--account=me", "--dry_run", SWEEP, *RUN[:-1])
    first, second = (shlex.join(flags_of(name)[:-1]) for name in ("swin_t", "clip_vit_b32"))
    assert (
        process.stdout
        == f"""\
sbatch --requeue --job-name=pixelrec --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 \
--cpus-per-task=8 --time=24:00:00 --signal=TERM@120 --chdir={Path.cwd()} --output=%x-%A_%a.log \
--open-mode=append --partition=gpu --array=0-1 --account=me <<'END'
#!/bin/bash
case "${{SLURM_ARRAY_TASK_ID:-0}}" in
  0) run=({first}) ;;
  1) run=({second}) ;;
esac
srun --kill-on-bad-exit=1 --cpus-per-task=8 /env/bin/python -m pixelrec_jax train "${{run[@]}}" \
--distributed=auto
code=$?
case "$code" in
  0 | 2 | 126 | 127) times=0 ;; # it has finished, or starting it again would not help
  130) times=200 ;; # it was told that its time is up
  *) times=20 ;; # a process was lost
esac
[ "${{SLURM_RESTART_COUNT:-0}}" -ge "$times" ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
END
# The table, when they have finished: pixelrec report --unfinished \
gs://b/runs/swin_t gs://b/runs/clip_vit_b32
"""
    )


def test_gke_prints_what_it_applies(fakes):
    process = fakes.launch(*GKE, "--spot", "--restarts=3", "--dry_run", *RUN[:-1])
    assert (
        process.stdout
        == f"""\
kubectl apply --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: first
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 3
    rules:
    - name: wrongInput
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: 4
        completions: 4
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values:
              - 2
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 4x4
              cloud.google.com/gke-spot: 'true'
            containers:
            - name: train
              image: reg/img:1
              command:
              - python
              - -m
              - pixelrec_jax
              - train
              args:
              - {CONFIG}
              - --config.dataset.path=gs://b/data
              - --workdir=gs://b/runs
              - --distributed=auto
              securityContext:
                privileged: true
              resources:
                requests:
                  google.com/tpu: 4
                limits:
                  google.com/tpu: 4
              volumeMounts:
              - name: memory
                mountPath: /dev/shm
            volumes:
            - name: memory
              emptyDir:
                medium: Memory
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: 'true'
              effect: NoSchedule
END
# The table, when they have finished: pixelrec report --unfinished gs://b/runs
"""
    )


def test_tpu_prints_what_it_does(fakes):
    where = "--project=p --zone=z-a"
    gcloud = "gcloud compute tpus queued-resources"
    create = f"""\
{gcloud} create first --node-id=first --accelerator-type=v5litepod-16 \
--runtime-version=v2-alpha-tpuv5-lite --spot --reserved {where}
"""
    delete = f"{gcloud} delete first --force --quiet {where}\n"
    reminder = "# What is not deleted costs money: --do=delete\n"
    cache = Path.home() / ".cache" / "pixelrec"
    run = f"""\
sh -c 'test -z "$(git -C {ROOT} status --porcelain)"' || exit
mkdir -p {cache} || exit
git -C {ROOT} archive --format=tar.gz --output={cache}/code.tar.gz HEAD || exit
{gcloud} scp {cache}/code.tar.gz first:code.tar.gz --node=all --worker=all {where} && \\
{gcloud} ssh first --node=all --worker=all '--command=sudo systemctl stop pixelrec 2> /dev/null; \
rm -rf pixelrec && mkdir pixelrec && tar -xzf code.tar.gz -C pixelrec && \
cd pixelrec && bash launch/tpu_vm.sh pixelrec {shlex.join(RUN[1:-1])} --distributed=auto' {where}
# The table, when they have finished: pixelrec report --unfinished gs://b/runs
"""
    expected = {
        "create": create + reminder,
        "status": f"{gcloud} describe first '--format=value(state.state)' {where}\n",
        "run": run + reminder,
        "logs": f"{gcloud} ssh first --node=0 --worker=0 '--command=sudo journalctl "
        f"--unit=pixelrec --lines=50 --no-pager --follow' {where}\n",
        "recreate": f"{delete.strip()} && \\\n{create}{reminder}",
        "delete": delete,
    }
    for verb, lines in expected.items():
        options = ["--spot", "--extra=--reserved", f"--do={verb}", "--dry_run"]
        process = fakes.launch(*TPU, *options, *RUN[:-1])
        assert process.stdout == lines, verb


def test_local_prints_what_it_starts(fakes):
    process = fakes.launch("local", "--dry_run", SWEEP, *RUN)
    assert [shlex.split(line) for line in process.stdout.splitlines()] == [
        [sys.executable, "-m", "pixelrec_jax", "train", *flags_of(encoder)]
        for encoder in ("swin_t", "clip_vit_b32")
    ]


@pytest.mark.parametrize(
    "arguments",
    [SLURM, GKE, [*TPU, "--do=create"], [*TPU, "--do=run"], [*GKE, "--do=logs"]],
    ids=lambda arguments: f"{arguments[0]}{arguments[-1]}",
)
def test_what_is_printed_is_a_script_of_what_runs(fakes, arguments):
    for name in ("sbatch", "kubectl", "gcloud", "git", "sh", "mkdir"):
        fakes.add(name)
    module, *options = arguments
    started = [sys.executable, "-m", f"pixelrec_jax.launch.{module}", *options, SWEEP, *RUN]
    assert fakes.run(*started).returncode == 0
    ran = fakes.calls()
    assert ran
    script = fakes.launch(*arguments, "--dry_run", SWEEP, *RUN).stdout
    assert not fakes.calls()
    assert fakes.run("bash", "-c", script).returncode == 0
    assert fakes.calls() == ran


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        *((0, "", False), (2, "", False), (127, "", False)),
        *((1, "", True), (1, "19", True), (1, "20", False), (137, "19", True), (137, "20", False)),
        # Time limits, which it was told of.
        *((130, "", True), (130, "20", True), (130, "200", False)),
    ],
)
def test_a_job_of_slurm_is_queued_again_if_that_can_help(fakes, code, restarts, requeued):
    fakes.add("sbatch")
    fakes.launch(*SLURM, SWEEP, *RUN)
    ((_, script),) = fakes.calls()
    fakes.add("srun", code)
    fakes.add("scontrol")
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": restarts}
    assert fakes.run("bash", "-c", script, **slurm).returncode == code
    (srun, _), *others = fakes.calls()
    python = ["/env/bin/python", "-m", "pixelrec_jax", "train"]
    step = ["--kill-on-bad-exit=1", "--cpus-per-task=8"]
    assert srun == ["srun", *step, *python, *flags_of("clip_vit_b32"), "--distributed=auto"]
    assert [call for call, _ in others] == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_a_tpu_vm_starts_the_run_with_its_flags(fakes, tmp_path):
    for name in ("gcloud", "git", "sudo", "python3", "sh", "mkdir"):
        fakes.add(name)
    fakes.launch(*TPU, "--do=run", *RUN)
    (tmp_path / "bin" / "sh").unlink()
    (tmp_path / "bin" / "mkdir").unlink()
    command = fakes.calls()[-1][0][-3].removeprefix("--command=")
    home = tmp_path / "home"
    home.mkdir()
    (home / "pixelrec").mkdir()
    (home / "pixelrec" / "old").touch()
    with tarfile.open(home / "code.tar.gz", "w:gz") as code:
        for file in ("launch/tpu_vm.sh", "pyproject.toml", "requirements.txt"):
            code.add(ROOT / file, file)
    (home / ".local" / "bin").mkdir(parents=True)
    fakes.add("uv")
    (tmp_path / "bin" / "uv").rename(home / ".local" / "bin" / "uv")
    process = fakes.run("bash", "-c", command, folder=home, HOME=str(home))
    assert process.returncode == 0, process.stderr
    assert not (home / "pixelrec" / "old").exists()
    calls = [call for call, _ in fakes.calls()]
    assert calls[0] == ["sudo", "systemctl", "stop", "pixelrec"]
    assert [call[0] for call in calls[1:]] == ["python3", "uv", "uv", "sudo"]
    assert calls[-1][1:3] == ["systemd-run", "--unit=pixelrec"]
    started = calls[-1].index(f"{home}/venv/bin/python")
    assert {"--property=LimitMEMLOCK=infinity"} < set(calls[-1][:started])
    # systemd takes $NAME for a variable, and $$ for $.
    assert "--config.warm_start.run=gs://b/it's $$HOME" in calls[-1][-2]
    program = ["-m", "pixelrec_jax", "train", *RUN[1:], "--distributed=auto"]
    assert [flag.replace("$$", "$") for flag in calls[-1][started + 1 :]] == program


def test_one_process_is_not_distributed(fakes):
    for line, distributed in (
        ([*GKE, "--topology=v5e:2x4"], False),
        ([*GKE, "--topology=v5e:4x4"], True),
        ([*TPU, "--topology=v5e:2x4", "--do=run"], False),
        ([*TPU, "--topology=v5e:2x4", "--do=run", "--num_slices=2"], True),
        ([*SLURM, "--nodes=1", "--gpus_per_node=1"], False),
        ([*SLURM, "--nodes=2", "--gpus_per_node=1"], True),
    ):
        process = fakes.launch(*line, "--dry_run", *RUN)
        assert ("--distributed=auto" in process.stdout) == distributed, line


def test_several_slices_are_one_queued_resource(fakes):
    slices = [*TPU, "--num_slices=2", "--do=create", "--dry_run", *RUN]
    assert " --node-count=2 --node-prefix=first " in fakes.launch(*slices).stdout


def test_a_failing_command_stops_its_job_only(fakes):
    for name in ("git", "sh", "mkdir"):
        fakes.add(name)
    fakes.add("gcloud", codes={"first-swin-t:code.tar.gz": 7})
    process = fakes.launch(*TPU, "--do=run", SWEEP, *RUN)
    assert process.returncode == 2
    error = process.stderr.splitlines()[-1]
    assert error == "error: 1 of 2 failed: first-swin-t (gcloud ended with 7); see above"
    verbs = [call[4:6] for call, _ in fakes.calls() if call[0] == "gcloud"]
    assert verbs == [
        ["scp", str(Path.home() / ".cache" / "pixelrec" / "code.tar.gz")],
        ["scp", str(Path.home() / ".cache" / "pixelrec" / "code.tar.gz")],
        ["ssh", "first-clip-vit-b32"],
    ]


def test_only_what_is_committed_goes_to_tpus(fakes, tmp_path):
    fakes.add("gcloud")
    clone, packed = tmp_path / "clone", tmp_path / ".cache" / "pixelrec" / "code.tar.gz"
    for part in ("configs", "launch", "pixelrec_jax"):
        shutil.copytree(ROOT / part, clone / part)
    for file in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / file, clone)
    with (clone / ".gitignore").open("a") as ignored:
        ignored.write("mine/\n")
    me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    for arguments in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "first")):
        subprocesses.run(["git", *arguments], cwd=clone, check=True)
    # As an editable installation has it: the launchers are beside the package.
    program = (
        "import runpy, sys, pixelrec_jax.launch; "
        "pixelrec_jax.launch.__path__ = ['launch']; sys.argv[0] = 'tpu'; "
        "runpy.run_path('launch/tpu.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *TPU[1:], "--do=run"]

    def launch(*options):
        return fakes.run(*command, *options, folder=clone, HOME=str(tmp_path))

    def refused(*of_run):
        process = launch("--", *of_run)
        script = launch("--dry_run", "--", *of_run).stdout
        assert fakes.run("bash", "-c", script, folder=clone).returncode == 1
        assert (process.returncode, fakes.calls()) == (2, [])
        return process.stderr.splitlines()[-1]

    script = launch("--dry_run", *RUN).stdout
    assert not packed.exists()
    assert fakes.run("bash", "-c", script).returncode == 0  # from any folder
    with tarfile.open(packed) as code:
        assert {"configs/pixelrec.py", "launch/tpu_vm.sh"} < set(code.getnames())
    assert [call[4] for call, _ in fakes.calls()] == ["scp", "ssh"]
    packed.unlink()
    assert launch(*RUN).returncode == 0
    assert packed.exists()
    assert [call[4] for call, _ in fakes.calls()] == ["scp", "ssh"]

    shutil.copytree(clone / "configs", clone / "mine")
    mine = [RUN[1].replace("=pixelrec:", "=mine/pixelrec.py:"), *RUN[2:]]
    assert "error: mine/pixelrec.py is not committed" in refused(*mine)
    (clone / "configs" / "new.py").touch()
    assert "files that are not committed" in refused(*RUN[1:])
    (clone / "configs" / "new.py").unlink()
    with (clone / "configs" / "pixelrec.py").open("a") as file:
        file.write("# changed\n")
    assert "there are changes" in refused(*RUN[1:])


def test_an_installed_package_goes_to_tpus_with_the_list_of_its_needs(fakes, installed, tmp_path):
    for name in ("gcloud", "sudo", "python3"):
        fakes.add(name)
    home, vm = tmp_path / "home", tmp_path / "vm"
    environment = {"PYTHONPATH": str(installed), "HOME": str(home)}
    command = [str(installed / "bin" / "pixelrec"), "launch", *TPU, "--do=run", *RUN]
    process = fakes.run(*command, folder=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    start = fakes.calls()[-1][0][-3].removeprefix("--command=")
    (vm / ".local" / "bin").mkdir(parents=True)
    shutil.copy(home / ".cache" / "pixelrec" / "code.tar.gz", vm)
    fakes.add("uv")
    (tmp_path / "bin" / "uv").rename(vm / ".local" / "bin" / "uv")
    process = fakes.run("bash", "-c", start, folder=vm, HOME=str(vm))
    assert process.returncode == 0, process.stderr
    flags = [flag.replace("$", "$$") for flag in RUN[1:]]
    expected = ["-m", "pixelrec_jax", "train", *flags, "--distributed=auto"]
    assert fakes.calls()[-1][0][-len(expected) :] == expected
    needs = (vm / "pixelrec" / "requirements.txt").read_text()
    assert "\njax<" in needs
    assert "extra" not in needs
    found = subprocesses.run(
        [sys.executable, "-c", "import pixelrec_jax.launch as x; print(x.__file__)"],
        cwd=vm / "pixelrec",
        env=os.environ | {"PYTHONPATH": ""},
        check=True,
    )
    assert found.stdout.startswith(str(vm))
    process = fakes.run(
        *command[:-4], "--", "--config=mine.py:item=id", *RUN[2:], folder=tmp_path, **environment
    )
    assert process.returncode == 2
    assert not fakes.calls()


def test_the_command_of_the_table_is_one_for_a_shell(fakes):
    process = fakes.launch("slurm", "--dry_run", "--", CONFIG, "--workdir=/shared/my runs;x")
    table = process.stdout.splitlines()[-1].partition(": ")[2]
    assert shlex.split(table)[-2:] == ["--unfinished", "/shared/my runs;x"]


def test_a_program_that_is_not_installed_is_named(fakes):
    process = fakes.launch(*SLURM, *RUN)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: sbatch is not installed")


def test_slices_have_the_names_and_hosts_of_google_cloud():
    # accelerator type, hosts, as in https://cloud.google.com/tpu/docs/v5e, v5p, v6e and v4
    known = {
        "v5e:1x1": ("v5litepod-1", 1),
        "v5e:2x4": ("v5litepod-8", 1),
        "v5e:4x4": ("v5litepod-16", 4),
        "v5e:16x16": ("v5litepod-256", 64),
        "v5p:2x2x1": ("v5p-8", 1),
        "v5p:4x4x4": ("v5p-128", 16),
        "v6e:8x8": ("v6e-64", 16),
        "v4:2x2x4": ("v4-32", 4),
    }
    for text, expected in known.items():
        there = Slice.parse(text)
        assert (there.accelerator_type, there.hosts) == expected
    for text, message in {
        "v5e": "v5e has no topology ''; expected one of 1x1, 2x2",
        "v5e:3x3": "v5e has no topology '3x3'",
        "v5:4x4": "unknown TPU 'v5'",
    }.items():
        with pytest.raises(UserError, match=message):
            Slice.parse(text)
