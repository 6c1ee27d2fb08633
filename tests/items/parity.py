"""Our vision backbones beside a PyTorch module with the same weights."""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict

from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.items.vision.pretrained import merge_collections, split_collections
from pixelrec_jax.weights.files import read
from pixelrec_jax.weights.mapping import WeightMapping, read_weights
from tests import double


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Gives every parameter and running statistic a size at which a wrong mapping shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator) * scale
            # Scales of norms and running variances stay near one.
            near_one = name.endswith("running_var") or (
                name.endswith("weight") and tensor.ndim == 1
            )
            tensor.copy_(1 + noise.clamp(-0.5, 0.5) if near_one else noise)
    return module


def random_image(size: int, count: int = 2, seed: int = 0) -> np.ndarray:
    """Normalised images float32[count, size, size, 3]."""
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


def as_torch(image: np.ndarray) -> torch.Tensor:
    """The same images in PyTorch's layout [M, 3, H, W]."""
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def saved(module: torch.nn.Module, folder) -> dict[str, np.ndarray]:
    """The tensors of a transformers model by the names of its checkpoints."""
    module.save_pretrained(folder)
    return read(folder / "model.safetensors")


def state_dict(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors of any other module, as they are now."""
    return {name: x.detach().numpy().copy() for name, x in module.state_dict().items()}


def backward(
    module: torch.nn.Module, forward: Callable, image: np.ndarray, direction: np.ndarray
) -> None:
    """Gives the module the gradients of sum(forward(images) * direction).

    Computed in float64, so that a comparison sees no rounding but ours.
    """
    module.double()
    output = forward(as_torch(image).double())
    (output * torch.from_numpy(direction).double()).sum().backward()
    module.float()


def gradients(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The gradients of any other module by parameter name."""
    return {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}


def saved_gradients(module: torch.nn.Module, folder) -> dict[str, np.ndarray]:
    """The gradients of a transformers model by the names of its checkpoints (it is changed)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    return saved(module, folder)


class Backbone:
    """One of our backbones with the weights of a PyTorch module."""

    def __init__(
        self,
        backbone: nn.Module,
        mappings: tuple[WeightMapping, ...],
        tensors: Mapping,
        *,
        size: int,
    ):
        """Args: `tensors` is a checkpoint; `size` is the side of the images."""
        self.backbone, self.mappings = backbone, mappings
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), image)
        tree = read_weights(tensors, mappings, merge_collections(shapes), origin="PyTorch")
        self.variables = split_collections(tree, shapes)

    def in_float64(self, **options) -> "Backbone":
        """The same backbone with other options, to compute with under the fixture `in_float64`."""
        other = copy.copy(self)
        other.backbone = double.module(self.backbone.clone(**options))
        other.variables = double.cast(self.variables)
        return other

    def __call__(self, image: np.ndarray) -> jax.Array:
        """The output in evaluation."""
        return jax.jit(self.backbone.apply)(self.variables, image)

    def layers(self, image: np.ndarray) -> dict[str, jax.Array]:
        """The output of every block in evaluation."""
        run = partial(self.backbone.apply, capture_intermediates=True, mutable=["intermediates"])
        captured = jax.jit(run)(self.variables, image)[1]["intermediates"]
        return {name: captured[name]["__call__"][0] for name in self.backbone.blocks}

    def gradients(
        self, image: np.ndarray, direction: np.ndarray, *, train: bool
    ) -> tuple[dict, dict]:
        """Gradients of sum(output * direction), and the variables a training step changes."""
        backbone = self.backbone.clone(train_mode_blocks=self.backbone.blocks)
        state = {name: tree for name, tree in self.variables.items() if name != "params"}

        def loss(params):
            output, changed = backbone.apply(
                {"params": params, **state},
                image,
                Context(train=train),
                mutable=list(state),
                rngs={"dropout": jax.random.key(0)},
            )
            return (output * direction).sum(), changed

        return jax.jit(jax.grad(loss, has_aux=True))(self.variables["params"])

    def read_gradients(self, tensors: Mapping) -> dict:
        """PyTorch's gradients as a tree of our parameters."""
        return read_weights(tensors, self.mappings, self.variables["params"], origin="gradients")


def assert_close(ours, theirs, tolerance: float = 1e-5, name: str = "") -> None:
    """Differences are at most `tolerance` of the largest magnitude."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert np.shape(ours) == theirs.shape, name
    difference = np.abs(np.asarray(ours) - theirs).max()
    assert difference <= tolerance * np.abs(theirs).max(), name


def assert_trees_close(ours: Mapping, theirs: Mapping, tolerance: float = 1e-5) -> None:
    """Tensor by tensor, relative to each one's own largest magnitude.

    Exempt are tensors that are zero but for rounding, such as the gradient of a key's bias: theirs
    and ours have at most a millionth of the largest magnitude of all.
    """
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    noise = 1e-6 * max(np.abs(x).max() for x in theirs.values())
    for path, value in theirs.items():
        name = "/".join(path)
        if np.abs(value).max() <= noise:
            assert np.shape(ours[path]) == np.shape(value), name
            assert np.abs(ours[path]).max() <= noise, name
        else:
            assert_close(ours[path], value, tolerance, name)


def assert_bfloat16_close(backbone: Backbone, image: np.ndarray) -> None:
    """Computing in bfloat16 beside float32 parameters changes the output by a twentieth at most."""
    half = backbone.backbone.clone(dtype=jnp.bfloat16)
    output = jax.jit(half.apply)(backbone.variables, image)
    assert output.dtype == jnp.bfloat16
    assert_close(output.astype(jnp.float32), backbone(image), 0.05)
    shapes = jax.eval_shape(half.init, jax.random.key(0), image)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
