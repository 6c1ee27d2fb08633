"""A fine-tuned encoder is exported to a file with published names, and read back."""

import jax
import numpy as np
import pytest

from pixelrec_jax.items.vision.pretrained import backbone_variables
from pixelrec_jax.runs.export import export
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.weights.files import read_tensors
from tests.tiny import tiny_config, use_tiny_encoders
from tests.training.runs import save_run


def _config(item, dataset):
    config = tiny_config(f"user=mf,item={item},dataset=toy", dataset)
    config.item.weights = ""
    return config


@pytest.fixture(scope="module")
def _tiny_encoders():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoders(patch)
        yield


@pytest.fixture(scope="module", params=["clip_vit_b32", "efficientnet_lite0"])
def saved(request, toy_dataset, tmp_path_factory, _tiny_encoders):
    """The config, workdir and state of a run."""
    config = _config(request.param, toy_dataset)
    workdir = tmp_path_factory.mktemp("export") / "run"
    return config, workdir, save_run(config, workdir)


def test_an_exported_encoder_is_the_start_of_another_run(saved, tmp_path):
    config, workdir, state = saved
    file = tmp_path / "encoder.safetensors"
    assert export(workdir, file) == len(read_tensors(file))
    with config.unlocked():
        config.item.weights = str(file)
    start = init_state(build_experiment(config))
    jax.tree.map(
        np.testing.assert_array_equal,
        backbone_variables(start.variables),
        backbone_variables(state.variables),
    )


def test_unknown_names_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match=r"unknown --names='caffe'; known: "):
        export(saved[1], tmp_path / "x", "caffe")
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_published_encoder_is_refused(toy_dataset, tmp_path):
    for item, reason in {"id": "no vision encoder", "vit_toy": "no published form"}.items():
        workdir = tmp_path / item
        workdir.mkdir()
        config = tiny_config(f"user=sasrec,item={item},dataset=toy", toy_dataset)
        (workdir / "config.json").write_text(config.to_json())
        with pytest.raises(UserError, match=reason):
            export(workdir, tmp_path / "x")
