"""Weights as trainers leave them: wrapped names, nested dictionaries, several files."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from ml_collections import ConfigDict

from pixelrec_jax.items.vision import pretrained
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights import files
from pixelrec_jax.weights.mapping import Rule, WeightMapping, linear, read_weights
from tests.weights.refusals import refusal

STATE = {f"layers.{n}.{x}": np.float32([[n, 1]]) for n in range(3) for x in ("weight", "scale")}
MAPPING = WeightMapping(
    "x", rules=(*linear("layers.{n}", "block_{n}"), Rule("layers.{n}.scale", "block_{n}/scale"))
)
TEMPLATE = {f"block_{n}": {"kernel": np.zeros((2, 1)), "scale": np.zeros((1, 2))} for n in range(3)}


def under(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def fits(state, mapping=MAPPING):
    tree = read_weights(state, [mapping], TEMPLATE, origin="x")
    for n in range(3):
        np.testing.assert_array_equal(tree[f"block_{n}"]["kernel"], [[n], [1]])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.net.a."])
def test_what_all_names_share_comes_off(prefix):
    fits(under(prefix))


def test_names_that_do_not_share_a_prefix_are_told():
    with pytest.raises(UserError, match=r"1 tensor unknown.*criterion.weight"):
        fits({**STATE, "criterion.weight": np.zeros(3)})


def test_a_prefix_that_belongs_to_the_names_stays():
    rule = Rule("visual.layers.{n}.scale", "block_{n}/scale")
    mapping = WeightMapping("x", rules=(*linear("visual.layers.{n}", "block_{n}"), rule))
    fits(under("visual."), mapping)
    fits(under("module.visual."), mapping)


def torch_file(path, content):
    def tensors(tree):
        if isinstance(tree, dict):
            return {name: tensors(value) for name, value in tree.items()}
        return torch.tensor(tree) if isinstance(tree, np.ndarray) else tree

    torch.save(tensors(content), path)
    return path


CHECKPOINTS = {
    "plain": STATE,
    "Lightning": {"state_dict": STATE, "epoch": 1, "callbacks": {}},
    "tutorial": {"epoch": 3, "model_state_dict": STATE, "loss": np.array(1.5)},
    "net": {"net": STATE, "accuracy": 0.5},
    "DeepSpeed": {"module": STATE, "ds_config": {"a": {"b": 1}}},
    "another name": {"encoder": STATE, "loss": np.array(1.5)},
    "deeper": {"trainer": {"encoder": STATE}},
    "with the optimizer": {"model": STATE, "optimizer": {"state": {0: STATE}, "groups": []}},
    "with a mean of weights": {"model": STATE, "model_ema": under("module.")},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_the_dictionary_of_tensors_in_a_checkpoint_is_found(tmp_path, form):
    fits(files.read_tensors(torch_file(tmp_path / "x.pth", CHECKPOINTS[form])))


def test_two_dictionaries_without_a_known_name_are_named(tmp_path):
    path = torch_file(tmp_path / "x.pth", {"teacher": STATE, "student": STATE})
    assert "tensors under 'teacher', 'student'; save one" in refusal(files.read_tensors, path)


def parts(folder, *, kind):
    """Writes the weights in two files, with an index; returns the index."""
    name, suffix = files._NAMES[kind].split(".")
    folder.mkdir()
    weight_map = {}
    for number in range(2):
        file = f"{name}-0000{number + 1}-of-00002.{suffix}"
        part = dict(list(STATE.items())[number::2])
        weight_map |= dict.fromkeys(part, file)
        if kind == 0:
            files.write_tensors(folder / file, part)
        else:
            torch_file(folder / file, part)
    index = folder / f"{files._NAMES[kind]}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("kind", [0, 1])
def test_an_index_of_several_files_is_followed(tmp_path, kind):
    index = parts(tmp_path / "x", kind=kind)
    assert files.locate(str(index.parent)) == index
    fits(files.read_tensors(index))


@pytest.mark.parametrize("kind", [0, 1])
def test_the_files_of_an_index_of_the_hub_are_fetched(tmp_path, monkeypatch, kind):
    index, asked = parts(tmp_path / "x", kind=kind), []

    def download(repository, name, *, revision):
        asked.append(name)
        if not (index.parent / name).exists():
            raise EntryNotFoundError("404")
        return str(index.parent / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert files.locate("owner/name") == index
    assert {path.name for path in index.parent.iterdir()} <= set(asked)


INDICES = {
    "outside": {"weight_map": {"a": "../x.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "itself": {"weight_map": {"a": "x.index.json"}},
    "a number": {"weight_map": {"a": 1}},
    "a list": {"weight_map": ["a"]},
    "nothing": {},
    "no object": [],
}


@pytest.mark.parametrize("content", INDICES)
def test_an_index_leads_to_files_beside_it_only(tmp_path, content):
    path = tmp_path / "x.index.json"
    path.write_text(json.dumps(INDICES[content]))
    assert f"{path} is not an index of weights" in refusal(files.read_tensors, path)


def test_an_index_with_files_or_tensors_missing_is_told(tmp_path):
    index = parts(tmp_path / "x", kind=0)
    content = json.loads(index.read_text())
    content["weight_map"]["more"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    assert "1 tensors that are not in model-00001" in refusal(files.read_tensors, index)
    content["weight_map"]["more"] = "model-00003.safetensors"
    index.write_text(json.dumps(content))
    assert "model-00003.safetensors cannot be read" in refusal(files.read_tensors, index)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value):
    state = STATE | {"layers.1.weight": np.array([[value, 1]])}
    with pytest.raises(UserError, match=r"not finite in float32, in 1 tensors, such as layers\.1"):
        fits(state)


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({"vision_config": {"hidden_act": "gelu"}, "hidden_act": "quick_gelu"}, "gelu"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"vision_config": {}}, None),  # the libraries leave out what is usual
        ({"vision_config": 1}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_activation_is_that_of_the_config_beside_the_weights(tmp_path, config, needed):
    path = tmp_path / "model.safetensors"
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    for chosen in ("quick_gelu", "gelu"):
        item = ConfigDict({"weights": str(path), "activation": chosen})
        path.touch()
        if needed in (None, chosen):
            pretrained._check_activation(item, path)
        else:
            with pytest.raises(UserError, match=f"says hidden_act='{needed}'.*{chosen}"):
                pretrained._check_activation(item, path)
