r"""Submits runs to a Slurm cluster of GPUs; a sweep is a job array.

pixelrec launch slurm --nodes=2 --gpus_per_node=8 --partition=gpu -- \
    --config=pixelrec:user=sasrec,dataset=pixel200k --workdir=/shared/runs/first

Every GPU has a process, as JAX expects with Slurm, and Slurm's variables tell it the others.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
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
)
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.program import define_path

_NOTICE = 120  # seconds before the time limit, for one step and one save
_RESTARTS = 20  # after so many, a failing run is not queued again
_INTERRUPTIONS = 200  # after so many, a run that reaches its time limit is not queued again


def script(
    every: Sequence[jobs.Job],
    *,
    python: str,
    cpus: int,
    distributed: bool,
    variables: Mapping[str, str],
) -> str:
    """Returns the batch script; the number of a job in the array selects its run."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    cases = "\n".join(
        f"  {number}) run=({shlex.join(job.flags)}) ;;" for number, job in enumerate(every)
    )
    train = f'{shlex.quote(python)} -m pixelrec_jax train "${{run[@]}}"'
    train += " --distributed=auto" if distributed else ""
    return f"""#!/bin/bash
{exports}case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
srun --kill-on-bad-exit=1 --cpus-per-task={cpus} {train}
code=$?
case "$code" in
  0 | 2 | 126 | 127) times=0 ;; # it has finished, or starting it again would not help
  130) times={_INTERRUPTIONS} ;; # it was told that its time is up
  *) times={_RESTARTS} ;; # a process was lost
esac
[ "${{SLURM_RESTART_COUNT:-0}}" -ge "$times" ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""


def submission(every: Sequence[jobs.Job]) -> Command:
    """Returns the sbatch command that submits all runs, with the options of the flags."""
    values = flags.FLAGS
    log = "%x-%A_%a.log" if len(every) > 1 else "%x-%j.log"
    options = {
        "job-name": values.name,
        "nodes": values.nodes,
        "ntasks-per-node": values.gpus_per_node,
        "gpus-per-node": values.gpus_per_node,
        "cpus-per-task": values.cpus_per_gpu,
        "time": values.time,
        "signal": f"TERM@{_NOTICE}",  # goes to the trainings; the script waits for them
        "chdir": Path.cwd(),  # relative paths in the flags of a run start here
        "output": log,
        "open-mode": "append",  # a requeued job continues the same log
    }
    if values.partition:
        options["partition"] = values.partition
    if len(every) > 1:
        options["array"] = f"0-{len(every) - 1}"
    argv = ["sbatch", "--requeue", *(f"--{name}={value}" for name, value in options.items())]
    text = script(
        every,
        python=values.python,
        cpus=values.cpus_per_gpu,
        distributed=values.nodes * values.gpus_per_node > 1,
        variables=environment(),
    )
    return Command((*argv, *values.extra), text)


def main(of_run: Sequence[str]) -> None:
    """Submits the runs that the flags describe."""
    values = flags.FLAGS
    if not re.fullmatch(r"[\w.-]{1,63}", values.name):
        raise UserError(
            f"--name={values.name}; expected letters, digits, '.', '_' and '-', at most 63"
        )
    every = jobs.jobs(of_run, values.name, values.sweep)
    jobs.check_not_local(every)
    jobs.check_devices(every, values.nodes * values.gpus_per_node)
    execute({values.name: [submission(every)]}, dry_run=values.dry_run)
    print(f"# The table, when they have finished: {jobs.report(every)}")


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string("name", "pixelrec", "name of the job")
    flags.DEFINE_integer("nodes", 1, "nodes of each run", 1)
    flags.DEFINE_integer("gpus_per_node", 8, "GPUs of each node", 1)
    flags.DEFINE_integer("cpus_per_gpu", 8, "cores for each GPU; they decode images", 1)
    flags.DEFINE_string("time", "24:00:00", "time limit; then a run is queued again and continues")
    flags.DEFINE_string("partition", "", "partition; default that of the cluster")
    define_extra_flag("sbatch", "--extra=--account=me")
    define_path("python", sys.executable, "Python on the nodes, with this package")
    define_common_flags()


if __name__ == "__main__":
    define_flags()
    program(main)
