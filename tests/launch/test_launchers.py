"""What all launchers have in common: what they print is what they run, with the run's flags."""

import shlex
import sys

import pytest

from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.system.errors import UserError
from tests.launch.lines import CONFIG, ENCODERS, GKE, RUN, SLURM, SWEEP, TPU, flags_of


def test_local_starts_a_run_for_each_encoder(fakes):
    process = fakes.launch("local", "--dry_run", SWEEP, *RUN)
    assert [shlex.split(line) for line in process.stdout.splitlines()] == [
        [sys.executable, "-m", "pixelrec_jax", "train", *flags_of(encoder)] for encoder in ENCODERS
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        SLURM,
        GKE,
        [*GKE, "--do=logs"],
        *([*TPU, f"--do={x}"] for x in ("create", "recreate", "run")),
    ],
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


@pytest.mark.parametrize("line", [SLURM, GKE, [*TPU, "--do=run"]], ids=lambda line: line[0])
def test_the_command_of_the_table_is_one_for_a_shell(fakes, line):
    table = fakes.launch(*line, "--dry_run", SWEEP, *RUN).stdout
    (table,) = (x for x in table.splitlines() if x.startswith("# ") and "report" in x)
    folders = [f"gs://b/runs/{encoder}" for encoder in ENCODERS]
    assert shlex.split(table.partition(": ")[2]) == ["pixelrec", "report", "--unfinished", *folders]
    process = fakes.launch("slurm", "--dry_run", "--", CONFIG, "--workdir=/shared/my runs;x")
    table = process.stdout.splitlines()[-1].partition(": ")[2]
    assert shlex.split(table)[-2:] == ["--unfinished", "/shared/my runs;x"]


def test_a_program_that_is_not_installed_is_named(fakes):
    process = fakes.launch(*SLURM, *RUN)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: sbatch is not installed")


def test_slices_have_the_names_and_hosts_of_google_cloud():
    # accelerator type, hosts, JAX devices; https://cloud.google.com/tpu/docs/v5e, v5p, v6e and v4
    known = {
        "v5e:1x1": ("v5litepod-1", 1, 1),
        "v5e:2x4": ("v5litepod-8", 1, 8),
        "v5e:4x4": ("v5litepod-16", 4, 16),
        "v5e:16x16": ("v5litepod-256", 64, 256),
        "v5p:2x2x1": ("v5p-8", 1, 4),
        "v5p:4x4x4": ("v5p-128", 16, 64),
        "v5p:16x16x24": ("v5p-12288", 1536, 6144),
        "v6e:8x8": ("v6e-64", 16, 64),
        "v4:2x2x4": ("v4-32", 4, 16),
        "tpu7x:4x4x4": ("tpu7x-128", 16, 128),  # as in xpk
        "v5p:4x4x12": ("v5p-384", 48, 192),  # three cubes
    }
    for text, expected in known.items():
        there = Slice.parse(text)
        assert (there.accelerator_type, there.hosts, there.devices) == expected
        assert str(there) == text


def test_an_accelerator_type_names_one_slice():
    assert Slice.parse("v5litepod-16") == Slice.parse("v5e-16") == Slice.parse("v5e:4x4")
    assert Slice.parse("v5p-128") == Slice.parse("v5p:4x4x4")
    assert Slice.parse("v6e-64") == Slice.parse("v6e:8x8")
    assert Slice.parse("tpu7x-2") == Slice.parse("tpu7x:1x1x1")
    for generation in ("v4", "v5p", "tpu7x"):
        there = Slice.parse(f"{generation}:2x2x2")
        assert Slice.parse(there.accelerator_type) == there


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "v5e": "no such slice; expected one of v5e:1x1, v5e:2x2",
        "v5e:3x3": "no such slice; expected one of v5e:1x1",
        "v5e:4x4x4": "no such slice",
        "v5p:4x4": "no such slice; expected one of v5p:2x2x1",
        "v5p:4x8x4": "no such slice",
        "v5p:0x4x4": "no such slice",
        "v5p:16x24x24": "no such slice",
        "v5p:4x4x9999": "no such slice",
        "v5p-100": "no such slice; expected one of v5p-8, v5p-16",
        "v5litepod-15": "no such slice; expected one of v5litepod-1, v5litepod-4",
        "v5p-": "no such slice",
        "v5:4x4": "unknown TPU 'v5'; did you mean 'v5",
        "h100-8": "unknown TPU 'h100'",
        "4x4": "unknown TPU '4x4'",
        ":": "unknown TPU ''",
        "": "--topology is missing",
    }.items(),
)
def test_a_slice_that_does_not_exist_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        Slice.parse(text)


@pytest.mark.parametrize("line", [GKE, [*TPU, "--do=create"]], ids=lambda line: line[0])
def test_launchers_take_accelerator_types_for_topologies(fakes, line):
    same = [
        fakes.launch(*line, f"--topology={name}", "--dry_run", *RUN).stdout
        for name in ("v5e:4x4", "v5litepod-16")
    ]
    assert same[0] == same[1] != ""
