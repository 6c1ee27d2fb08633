"""The CLIP tower against transformers' PyTorch one, through a safetensors file."""

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from pixelrec_jax.data.types import Items
from pixelrec_jax.errors import UserError
from pixelrec_jax.items.vision.vit import CLIP_RULES, VisionTransformer
from pixelrec_jax.recommender import build
from pixelrec_jax.weights import locate, port, read_safetensors
from tests.tiny import tiny_config

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 8,
}
TRUNK = VisionTransformer(width=32, depth=3, heads=4, patch=8, mlp=64)


def _torch_tower():
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    with torch.no_grad():  # the initial weights are so small that a wrong port might pass
        for parameter in tower.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return tower


@pytest.fixture(scope="module")
def tower():
    return _torch_tower()


@pytest.fixture(scope="module")
def weights_file(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower.save_pretrained(folder)
    return locate(str(folder))


@pytest.fixture(scope="module")
def template():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    init = jax.eval_shape(lambda x: TRUNK.init(jax.random.key(0), x, train=False), image)
    return init["params"]


def _assert_close(ours, theirs, tolerance):
    difference = np.abs(np.asarray(ours) - theirs.detach().numpy()).max()
    assert difference <= tolerance * np.abs(theirs.detach().numpy()).max()


def test_every_layer_equals_pytorch(tower, weights_file, template):
    params = port(read_safetensors(weights_file), CLIP_RULES, template, origin="file")
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours, layers = TRUNK.apply(
        {"params": params}, image, train=False, capture_intermediates=True, mutable="intermediates"
    )
    theirs = tower(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)
    _assert_close(ours, theirs.last_hidden_state, 1e-5)
    layers = layers["intermediates"]
    for name, hidden in zip(TRUNK.blocks, theirs.hidden_states, strict=True):
        _assert_close(layers[name]["__call__"][0], hidden, 1e-5)


def test_gradients_equal_pytorch(tower, weights_file, template):
    params = port(read_safetensors(weights_file), CLIP_RULES, template, origin="file")
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    direction = rng.normal(size=(2, 17, 32)).astype(np.float32)
    ours = jax.jit(
        jax.grad(lambda p: (TRUNK.apply({"params": p}, image, train=True) * direction).sum())
    )(params)
    tower.zero_grad()
    tokens = tower(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).last_hidden_state
    (tokens * torch.from_numpy(direction)).sum().backward()
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in tower.named_parameters()
        if parameter.grad is not None
    }
    theirs = port(gradients, CLIP_RULES, template, origin="gradients")
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), ours, theirs)


def test_a_whole_clip_checkpoint_of_the_hub_is_read(template, tmp_path):
    """Files of the hub hold the text tower, too, and transformers 4's `vision_model.` prefix."""
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))
    model.save_pretrained(tmp_path)
    tensors = read_safetensors(locate(str(tmp_path)))
    assert any(name.startswith("vision_model.encoder") for name in tensors)
    assert any(name.startswith("text_model") for name in tensors)
    params = port(tensors, CLIP_RULES, template, origin="file")
    np.testing.assert_array_equal(
        params["block_2"]["mlp_in"]["kernel"],
        tensors["vision_model.encoder.layers.2.mlp.fc1.weight"].T,
    )


def test_a_checkpoint_of_another_architecture_is_one_error(weights_file, template):
    tensors = read_safetensors(weights_file)
    some = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    tensors["something.else"] = np.zeros(3)
    tensors[some] = tensors[some][:5]
    del tensors[some.replace("fc1", "fc2")]
    with pytest.raises(UserError) as caught:
        port(tensors, CLIP_RULES, template, origin="this file")
    message = str(caught.value)
    assert "this file does not fit the model" in message
    assert "something.else (3,) is unknown" in message
    assert "block_1/mlp_in/kernel of shape (32, 5) instead of (32, 64)" in message
    assert "nothing fills block_1/mlp_out/kernel" in message
    assert "\n" not in message


def test_a_checkpoint_with_more_layers_names_them(weights_file, template):
    tensors = read_safetensors(weights_file)
    extra = {
        name.replace("layers.2", "layers.3"): tensor
        for name, tensor in tensors.items()
        if "layers.2.mlp" in name
    }
    with pytest.raises(UserError, match=r"goes to block_3/mlp_in/kernel, which the model lacks"):
        port({**tensors, **extra}, CLIP_RULES, template, origin="this file")


def test_a_truncated_file_is_refused(weights_file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights_file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_safetensors(locate(str(cut)))


def test_weights_that_are_nowhere_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        locate(str(tmp_path / "missing.safetensors"))


def test_weights_of_the_hub_without_a_network():
    with pytest.raises(UserError, match="could not be fetched from the Hugging Face hub"):
        locate("nobody/has-this-model@main")


def test_the_padding_image_is_grey_after_normalisation():
    """Slot 0 is encoded as zeros after normalisation, whatever its pixels say."""
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy")
    model = build(config, num_items=5)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 16, 3)).astype(np.uint8)
    items = Items(id=np.array([[0, 1]], np.int32), image=pixels)
    variables = model.init(jax.random.key(0), items, method="encode_items")
    vectors = model.apply(variables, items, method="encode_items")
    others = items.replace(image=255 - pixels)
    changed = model.apply(variables, others, method="encode_items")
    np.testing.assert_array_equal(vectors[0, 0], changed[0, 0])
    assert not np.allclose(vectors[0, 1], changed[0, 1])


def test_image_size_must_fit_the_patches():
    config = tiny_config("user=sasrec,item=clip_vit_b32,dataset=toy")
    config.item.image_size = 100
    with pytest.raises(UserError, match=r"item.image_size=100 .* 32 pixel patches .* try 96"):
        build(config, num_items=5)
