"""Small runs compiled for TPU pods that do not exist here."""

import json
import os
import re
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.launch.dryrun import known_failures, programs
from pixelrec_jax.launch.dryrun import table as encoder_table
from pixelrec_jax.launch.dryrun.estimate import TRAIN, dry_run, report, table
from pixelrec_jax.launch.dryrun.roofline import CompilerError, DoesNotFitError, compile_and_count
from pixelrec_jax.system.chips import CHIPS
from pixelrec_jax.system.console import render
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT, TINY, tiny_config

pytest.importorskip("libtpu")
ID = "user=mf,item=id,dataset=pixel200k"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Datasets of few users."""
    counts = {"users": 4_000, "items": 1_000, "interactions": 60_000}
    monkeypatch.setattr(programs, "COUNTS", dict.fromkeys(programs.COUNTS, counts))


def config_of(words: str, **mesh: int):
    config = tiny_config(words)
    config.mesh.update(mesh)
    return config


def test_what_chips_exchange_does_not_grow_with_the_pod(monkeypatch):
    """Gradients of dense parameters: 2 (n - 1) / n of their bytes, whatever n."""
    backbone = partial(TINY["vit_toy"].backbone, depth=1)
    tiny = replace(TINY["vit_toy"], backbone=backbone)
    monkeypatch.setitem(VISION_ENCODERS, "vit_toy", tiny)
    config = config_of("user=fm,item=vit_toy,dataset=pixel200k")
    sent = {}
    for topology, chips in (("v5e:2x4", 8), ("v5e:4x4", 16)):
        result = dry_run(config, topology, examples_per_chip=2, training_only=True)
        assert result["batch_size"] == 2 * chips
        (kind,) = result["programs"][TRAIN]["sent"]
        assert kind == "all-reduce"
        sent[chips] = result["programs"][TRAIN]["sent"][kind] / (2 * (chips - 1) / chips)
    assert sent[16] == pytest.approx(sent[8], rel=0.001)
    assert sent[8] == pytest.approx(result["parameters"], rel=0.1)


def test_an_error_of_the_compiler_is_a_line_and_a_row(monkeypatch, tmp_path):
    class Failing:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: LLO_CHECK failure (a.cc:1) x")

    with pytest.raises(CompilerError, match=r"the TPU compiler failed .*LLO_CHECK failure.* try"):
        compile_and_count(Failing(), CHIPS["v6e"], coordinates=[(0, 0)])

    def dry_run(*args, **kwargs):
        raise CompilerError("it failed")

    monkeypatch.setattr(encoder_table, "dry_run", dry_run)
    case, *_ = encoder_table.encoders()
    encoder_table.measure(case, tmp_path / "results.jsonl")
    (result,) = encoder_table.read(tmp_path / "results.jsonl").values()
    cells = encoder_table.row(case, result)
    assert cells[:4] == ["v5e:2x4 (8)", "`clip_vit_b32`", "64", "compiler error"]


def test_steps_of_an_epoch_need_no_times():
    words = "pixelrec:user=sasrec,dataset=custom"
    by_time, plain = (load_config(words + split) for split in (",split=global_time", ""))
    steps = programs.steps_per_epoch(plain, "pixel200k", 10)
    assert steps >= 400  # of 4,000 users
    assert programs.steps_per_epoch(by_time, "pixel200k", 10) == steps


def test_memory_of_parameters_falls_as_one_over_the_shards():
    results = []
    for fsdp in (1, 8):
        config = config_of(ID, fsdp=fsdp)
        config.width = 1024
        results.append(dry_run(config, "v5e:2x4", examples_per_chip=4, training_only=True))
    whole, split = results
    assert whole["parameters"] == 4 * 1024 * (4_001 + 1_001)
    for key in ("parameters", "optimizer"):
        assert split[key] == pytest.approx(whole[key] / 8, rel=0.01)
    before, after = (x["programs"][TRAIN]["arguments"] for x in results)
    assert before > 3 * whole["parameters"]  # with both moments, as the compiler lays them out
    assert after == pytest.approx(before / 8, rel=0.1)


def test_gradients_of_matrices_are_summed_to_where_their_shares_are():
    config = config_of("user=sasrec,item=id,dataset=pixel200k", fsdp=8)
    config.update_from_flattened_dict({"width": 1024, "user.layers": 1, "user.mlp_ratio": 2})
    result = dry_run(config, "v5e:2x4", examples_per_chip=4, training_only=True)
    matrices = 4 * (4 + 2 * 2) * 1024**2  # bytes of attention and MLP
    assert result["programs"][TRAIN]["sent"]["reduce-scatter"] == 7 / 8 * matrices


def test_a_program_that_needs_too_much_memory_is_reported():
    pod = programs.describe_pod("v5e:2x4")
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,), devices=pod.devices)
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((3 * 2**30,), jnp.float32, sharding=whole)
    with pytest.raises(DoesNotFitError, match=r"needs 24\.\d of 15\.75 GiB") as caught:
        compile_and_count(jax.jit(lambda x: x * 2).lower(x), pod.chip, coordinates=[])
    error = caught.value
    cost = {"fits": False, "peak": error.needed, "available": error.available}
    assert "no, of 15.8 GiB" in render([table({TRAIN: cost})])


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5g:4x4", r"unknown TPU 'v5g'; did you mean 'v5"),
        ("v5e:3x5", r"--topology=v5e:3x5: no such slice"),
        ("v4:2x2x1", r"the peaks of v4 are not known; give one of v5e, v5p, v6e, tpu7x"),
    ],
)
def test_a_wrong_topology_is_one_line(topology, expected):
    with pytest.raises(UserError, match=expected):
        programs.describe_pod(topology)


def test_what_is_known_to_fail_is_refused_at_once_with_the_way_out(monkeypatch):
    config = load_config("pixelrec:user=sasrec,item=swin_t,dataset=pixel200k")
    monkeypatch.setattr(known_failures.metadata, "version", lambda name: "0.0.42.1")
    with pytest.raises(CompilerError, match=r"swin_t for v6e .* give --examples_per_chip=16"):
        dry_run(config, "v6e:2x4", examples_per_chip=64)
    pods = {name: programs.describe_pod(f"{name}:2x4") for name in ("v5e", "v6e")}
    with config.unlocked():
        config.train.batch_size = 8 * 48
    with pytest.raises(CompilerError, match="swin_t"):
        known_failures.refuse_known_failure(config, pods["v6e"], 0)
    known_failures.refuse_known_failure(config, pods["v6e"], 16)
    known_failures.refuse_known_failure(config, pods["v5e"], 64)
    with config.unlocked():
        config.train.microbatches = 4  # 16 at once
    known_failures.refuse_known_failure(config, pods["v6e"], 64)
    with config.unlocked():
        config.train.microbatches = 1
    monkeypatch.setattr(known_failures.metadata, "version", lambda name: "0.0.43")
    known_failures.refuse_known_failure(config, pods["v6e"], 64)


def test_a_slice_may_be_named_by_its_accelerator_type():
    first, second = (programs.describe_pod(name) for name in ("v5litepod-16", "v5e:4x4"))
    assert [x.coords for x in first.devices] == [x.coords for x in second.devices]
    assert len(programs.describe_pod("v5p-128").devices) == 64
    assert len(programs.describe_pod("tpu7x-16").devices) == 16  # two on each chip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (ID, r"batch_size=16 is not divisible by the 256 data shards"),
        ("user=vbpr,item=features,dataset=pixel200k", r"give dataset=custom and --config"),
        (f"{ID},split=global_time", r"split=global_time needs more of a dataset than its size"),
        ("user=mf,item=id,dataset=custom", r"is not a prepared dataset"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(words, expected):
    with pytest.raises(UserError, match=expected):
        dry_run(config_of(words), "v5e:16x16")


def test_a_prepared_dataset_is_taken_as_it_is(toy_dataset):
    config = tiny_config("user=lightgcn,item=id,dataset=toy", toy_dataset)
    pod = programs.describe_pod("v5e:2x4")
    experiment = programs.experiment(config, pod)
    assert experiment.interactions.num_users == 61
    assert experiment.resident.graph.user.sharding.mesh == experiment.mesh  # shapes only


def test_official_datasets_have_their_counts(monkeypatch):
    monkeypatch.undo()
    interactions = programs.official("pixel200k")
    assert (interactions.num_users, interactions.num_items) == (200_001, 96_283)
    assert len(interactions.items) == interactions.offsets[-1] == 3_965_656
    assert interactions.items.min() == 1
    assert interactions.items.max() <= 96_282


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (f"dryrun --config=pixelrec:{ID} --topology=v5e:2x4 --json=", "", "is a folder"),
        ("dryrun_table --study=mf_pixel8m --results=", "/no/x", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_is_one_line_before_compiling(options, name, message, tmp_path):
    program, *arguments = f"{options}{tmp_path}{name}".split()
    command = [sys.executable, "-m", "pixelrec_jax", program, *arguments]
    done = subprocesses.run(command, cwd=ROOT)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert error.startswith(f"error: {arguments[-1]}")
    assert message in error


def test_the_program_prints_and_writes_what_it_found(toy_dataset, tmp_path):
    config = "pixelrec:user=mf,item=id,dataset=toy"
    command = [sys.executable, "-m", "pixelrec_jax", "dryrun", f"--config={config}"]
    command += [f"--config.dataset.path={toy_dataset}", "--config.width=16"]
    command += ["--topology=v5p:2x2x1", f"--json={tmp_path}/out.json"]
    loud = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    loud.pop("JAX_PLATFORMS")  # JAX then looks for TPUs, and libtpu says that there are none
    done = subprocesses.run(command, cwd=ROOT, env=loud, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["devices"] == 4
    assert set(result["programs"]) == {"train step", "encoding", "ranking"}
    assert done.stdout == report(result) + "\n"
    # Standard error says the stages and nothing else: no library writes there.
    stages = ["describing the pod", "building the model", "tracing the programs"]
    stages += [
        f"compiling {name}, {number} of 3"
        for number, name in enumerate(result["programs"], start=1)
    ]
    # A slow stage has further lines, with the elapsed time.
    lines = re.sub(r"^.* \.\.\. \d+ s\n", "", done.stderr, flags=re.MULTILINE)
    expected = "".join(f"{stage} ...\n{stage}: 0 s\n" for stage in stages)
    assert re.sub(r": \d+ s$", ": 0 s", lines, flags=re.MULTILINE) == expected
    assert re.search(r"bound by +HBM +HBM +HBM", done.stdout)
    for cost in result["programs"].values():
        assert cost["seconds"] == max(cost["times"].values())
