"""What is submitted to Slurm, and what its jobs do."""

from pathlib import Path

import pytest

from tests.launch.lines import ENCODERS, RUN, SLURM, SWEEP, check_shell, flags_of, options


def test_a_sweep_is_an_array_of_jobs(fakes):
    fakes.add("sbatch")
    assert fakes.launch(*SLURM, "--extra=--account=me", SWEEP, *RUN).returncode == 0
    ((argv, script),) = fakes.calls()
    given = options(argv)
    assert argv[0] == "sbatch"
    assert "%A" in given["--output"]  # the array
    assert "%a" in given["--output"]  # its job
    asked = {
        "--nodes": "2",
        "--ntasks-per-node": "4",
        "--gpus-per-node": "4",
        "--partition": "gpu",
        "--array": "0-1",
        "--account": "me",
    }
    assert asked.items() <= given.items()
    # What goes on after a time limit: it is told of, queued again, and continues in its folder.
    assert "--requeue" in given
    assert given["--signal"].startswith("TERM@")
    assert given["--chdir"] == str(Path.cwd())
    check_shell(script)


def test_a_single_run_is_a_job(fakes):
    fakes.add("sbatch")
    assert fakes.launch("slurm", *RUN).returncode == 0
    ((argv, script),) = fakes.calls()
    assert not {"--array", "--partition"} & options(argv).keys()
    assert "%j" in options(argv)["--output"]
    fakes.add("srun")
    assert fakes.run("bash", "-c", script).returncode == 0
    ((srun, _),) = fakes.calls()
    assert srun[-len(flags_of()) - 1 :] == [*flags_of(), "--distributed=auto"]


def run_job(fakes, task: int, *, code: int = 0, restarts: str = "") -> list[list[str]]:
    """Submits a sweep, runs a job of its array whose training ends with a code, returns its calls.

    The job has been queued again `restarts` times.
    """
    fakes.add("sbatch")
    fakes.launch(*SLURM, SWEEP, *RUN)
    ((_, script),) = fakes.calls()
    fakes.add("srun", code)
    fakes.add("scontrol")
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": "77"}
    process = fakes.run("bash", "-c", script, **slurm, SLURM_RESTART_COUNT=restarts)
    assert process.returncode == code
    return [call for call, _ in fakes.calls()]


@pytest.mark.parametrize("task", range(len(ENCODERS)))
def test_a_job_starts_its_run_on_every_gpu(fakes, task):
    (srun,) = run_job(fakes, task)
    python = srun.index("/env/bin/python")
    assert options(srun[:python]) == {"--kill-on-bad-exit": "1", "--cpus-per-task": "8"}
    program = ["-m", "pixelrec_jax", "train"]
    assert srun[python + 1 :] == [*program, *flags_of(ENCODERS[task]), "--distributed=auto"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        *((0, "", False), (2, "", False), (127, "", False)),
        *((1, "", True), (1, "19", True), (1, "20", False), (137, "19", True), (137, "20", False)),
        # Time limits, which it was told of.
        *((130, "", True), (130, "20", True), (130, "200", False)),
    ],
)
def test_a_job_is_queued_again_if_that_can_help(fakes, code, restarts, requeued):
    _, *others = run_job(fakes, 1, code=code, restarts=restarts)
    assert others == ([["scontrol", "requeue", "77"]] if requeued else [])
