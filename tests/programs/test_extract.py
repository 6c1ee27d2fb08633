"""Features of frozen encoders: outputs of layers, by item, in a file that recommenders read."""

import dataclasses
import json
import sys
from functools import partial

import jax
import numpy as np
import pytest

from pixelrec_jax.data.features import FeatureStore, provenance
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.items.pixel import NORMALISATIONS
from pixelrec_jax.runs.extract import check_output, choose_encoder, extract
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.train import train_and_evaluate
from tests import double, subprocesses
from tests.tiny import ROOT, tiny_config, use_tiny_encoders
from tests.training.runs import save_run


@pytest.fixture(autouse=True)
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)


@pytest.fixture
def interactions(toy_dataset):
    return load_interactions(toy_dataset)


def _choose(interactions, item, **changes):
    changes = {"weights": "", "image_size": 16} | changes
    return choose_encoder(interactions, item=item, workdir=None, changes=changes)


def _assert_close(actual, expected, relative):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


def _in_float64(encoder):
    module, variables = double.module(encoder.module), double.cast(encoder.variables)
    return dataclasses.replace(encoder, module=module, variables=variables)


def _backbone(encoder, interactions):
    """The backbone applied to all images by itself: its output, and the outputs of its modules."""
    images = ImageStore(interactions.directory, size=16).load(np.arange(1, interactions.num_items))
    mean, std = map(np.asarray, NORMALISATIONS[encoder.module.normalisation])
    images = (images / 255 - mean) / std
    variables = {name: tree["backbone"] for name, tree in encoder.variables.items()}
    options = {"mutable": "intermediates", "capture_intermediates": True}
    x, captured = jax.jit(partial(encoder.module.backbone.apply, **options))(variables, images)
    return x, captured["intermediates"]


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("item", "pool", "shape", "layer", "layer_shape"),
    [
        ("clip_rn50", "attention", (16,), "layer1", (4, 4, 16)),
        ("vit_b16", "tokens", (5, 16), "block_0", (5, 16)),
    ],
)
def test_rows_are_what_the_backbone_and_its_layers_make_of_images(
    interactions, tmp_path, item, pool, shape, layer, layer_shape
):
    encoder, out = _in_float64(_choose(interactions, item, pool=pool)), tmp_path / "features.npy"
    backbone, modules = _backbone(encoder, interactions)

    def rows(**options):
        options = {"devices": jax.devices()[:1], "dtype": "float64"} | options
        description = extract(interactions, encoder, out, **options)
        matrix = np.load(out)
        assert list(matrix.shape) == description["shape"]
        assert not matrix[0].any()
        return matrix[1:]

    output = rows()
    assert output.shape[1:] == shape
    double.assert_close(output, backbone)
    output = rows(layer=layer)
    assert output.shape[1:] == layer_shape
    double.assert_close(output, modules[layer]["__call__"][0])
    mean = rows(layer=layer, average=True, dtype="float16")
    assert mean.dtype == np.float16
    _assert_close(mean, output.reshape(len(output), -1, layer_shape[-1]).mean(1), 1e-3)


@pytest.mark.numerical
def test_rows_depend_on_no_batch_and_no_device(interactions, tmp_path):
    encoder, out = _choose(interactions, "efficientnet_lite0"), tmp_path / "features.npy"
    results = []
    for devices, batch_size in ((1, 64), (1, 7), (8, 1), (8, 64)):
        arguments = {"batch_size": batch_size, "devices": jax.devices()[:devices]}
        extract(interactions, encoder, out, **arguments)
        results.append(np.load(out))
    for result in results[1:]:
        _assert_close(result, results[0], 1e-6)


def test_the_encoder_of_a_run_and_a_recommender_on_its_features(interactions, tmp_path):
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy", interactions.directory)
    config.item.update({"remat": True, "trainable": "last:1"})
    experiment, run = build_experiment(config), tmp_path / "pixel"
    state = save_run(config, run)
    encoder = choose_encoder(interactions, item=None, workdir=str(run))
    assert encoder.layers == ("stem", "block_0", "block_1", "norm", "vector")
    out = tmp_path / "features.npy"
    extract(interactions, encoder, out, layer="vector")

    catalog = np.asarray(experiment.evaluator.encode_catalog(state.variables))
    catalog = catalog.reshape(-1, config.width)[1 : interactions.num_items]
    _assert_close(np.load(out)[1:], catalog, 1e-6)

    extract(interactions, encoder, out)  # tokens
    config = tiny_config("user=sasrec,item=features,dataset=toy", interactions.directory)
    config.item.path, config.train.epochs = str(out), 1
    result = train_and_evaluate(config, tmp_path / "features")
    assert np.isfinite(result["test"]["model"]["all"]["ndcg@10"]["value"])


def test_a_file_says_what_it_is(interactions, tmp_path):
    out = tmp_path / "features.npy"
    description = extract(interactions, _choose(interactions, "vit_toy", pool="cls"), out)
    shape = [interactions.num_items, 16]
    assert json.loads(provenance(out).read_text()) == description | {"shape": shape}
    assert description["encoder"] == "vit_toy"
    assert description["pool"] == "cls"
    assert FeatureStore(out, interactions).load(np.array([0, 5])).shape == (2, 16)


def test_files_are_complete_and_replaced_only_if_asked(interactions, tmp_path):
    encoder, out = _choose(interactions, "vit_toy"), tmp_path / "features.npy"
    extract(interactions, encoder, out)
    before = out.read_bytes()
    broken = jax.tree.map(lambda x: x * np.nan, encoder.variables)
    broken = dataclasses.replace(encoder, variables=broken)
    with pytest.raises(UserError, match="features of item 1 are not finite in float32"):
        extract(interactions, broken, out)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"features.npy", "features.json"}
    check_output(interactions, out, overwrite=True)
    with pytest.raises(UserError, match=r"exists; .*--overwrite"):
        check_output(interactions, out, overwrite=False)
    (tmp_path / "manifest.json").write_text("{}")  # what the description would overwrite
    with pytest.raises(UserError, match=r"manifest\.json exists"):
        check_output(interactions, tmp_path / "manifest.npy", overwrite=False)


def test_wrong_input_is_one_line(interactions, tmp_path, toy_dataset):
    encoder = _choose(interactions, "vit_toy")
    with pytest.raises(UserError, match=r"block_7 is .* of stem, block_0, block_1, norm$"):
        extract(interactions, encoder, tmp_path / "x.npy", layer="block_7")
    with pytest.raises(UserError, match="vector is not a layer of"):  # its projection is random
        extract(interactions, encoder, tmp_path / "x.npy", layer="vector")
    with pytest.raises(UserError, match=r"does not end in \.npy"):
        check_output(interactions, tmp_path / "x.json", overwrite=False)
    with pytest.raises(UserError, match=r"cannot be written .*; give another place"):
        extract(interactions, encoder, tmp_path / "nowhere" / "x.npy")
    manifest = interactions.manifest | {"images": None}
    without_images = dataclasses.replace(interactions, manifest=manifest)
    with pytest.raises(UserError, match="prepared without images"):
        check_output(without_images, tmp_path / "x.npy", overwrite=False)

    for both in ({"item": None, "workdir": None}, {"item": "vit_toy", "workdir": "runs"}):
        with pytest.raises(UserError, match=r"give --item=NAME .* or --workdir=DIR"):
            choose_encoder(interactions, **both)
    with pytest.raises(UserError, match=r"unknown vision encoder .*; did you mean"):
        _choose(interactions, "vit_toi")
    with pytest.raises(UserError, match="vit_toy has no published weights; give --weights"):
        choose_encoder(interactions, item="vit_toy", workdir=None)
    with pytest.raises(UserError, match=r"the file 'missing\.py' does not exist"):
        choose_encoder(interactions, item="vit_toy", workdir=None, config="missing.py")
    with pytest.raises(UserError, match=r"item\.pool='max'; expected tokens, cls or mean"):
        _choose(interactions, "vit_toy", pool="max")
    with pytest.raises(UserError, match="--pool is given with --workdir, but"):
        choose_encoder(interactions, item=None, workdir="runs", changes={"pool": "cls"})
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(UserError, match="item=id, which has no vision encoder"):
        choose_encoder(interactions, item=None, workdir=str(tmp_path))


def test_the_program(interactions, tmp_path):
    out = tmp_path / "features.npy"
    command = [sys.executable, "-m", "pixelrec_jax.programs.extract", "--item=vit_toy", "--average"]
    command += ["--weights="]  # random ones, but only on request
    command += [f"--data={interactions.directory}", "--image_size=16", f"--out={out}"]
    done = subprocesses.run(command, cwd=ROOT, check=True)
    assert f"{out}: {interactions.num_items - 1} items, 64 float32 each, 0.0 MB" in done.stdout
