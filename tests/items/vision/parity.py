"""Our vision backbones beside a PyTorch module with the same weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import flax.linen as nn
import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from transformers import PreTrainedModel

from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.items.vision.pretrained import merge_collections, split_collections
from pixelrec_jax.weights import files
from pixelrec_jax.weights.mapping import WeightMapping, read_weights
from tests import double

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Returns the module with values in every tensor so large that a wrong mapping shows."""
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
    """Returns normalised images float32[count, size, size, 3]."""
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


def as_torch(image: np.ndarray) -> torch.Tensor:
    """Returns the same images in PyTorch's layout [M, 3, H, W]."""
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def as_jax(x: torch.Tensor) -> np.ndarray:
    """Returns PyTorch's map [M, C, H, W] as [M, H, W, C], and other shapes unchanged."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().numpy()


def checkpoint(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the tensors of a module by the names of its checkpoints."""
    if isinstance(module, PreTrainedModel):  # its files have other names
        with TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            return files.read_tensors(Path(folder) / "model.safetensors")
    return {name: x.detach().numpy().copy() for name, x in module.state_dict().items()}


def backward(
    module: torch.nn.Module, forward: Callable, image: np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """Gives the module the gradients of sum(forward(images) * direction) and returns the output.

    PyTorch computes in float64, so a comparison sees only our rounding.
    """
    module.double()
    output = forward(as_torch(image).double())
    (output * torch.from_numpy(direction).double()).sum().backward()
    module.float()
    return output.detach().numpy()


def gradients(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the gradients by the names of checkpoints; the module loses its weights."""
    used = {name for name, x in module.named_parameters() if x.grad is not None}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    named_alike = not isinstance(module, PreTrainedModel)
    return {
        name: x
        for name, x in checkpoint(module).items()
        if not name.endswith(_STATISTICS) and (name in used or not named_alike)
    }


@cache
def _shapes(backbone: nn.Module, size: int) -> dict:
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(backbone.init, jax.random.key(0), image)


@partial(jax.jit, static_argnames=("backbone", "pools"))
def _evaluate(
    backbone: nn.Module, variables: dict, image: jax.Array, pools: tuple[str, ...]
) -> tuple[dict, dict]:
    """Returns outputs by pool and the outputs of every block; shared work is done once."""
    run = partial(backbone.apply, capture_intermediates=True, mutable=["intermediates"])
    captured = run(variables, image)[1]["intermediates"]
    outputs = {pool: backbone.clone(pool=pool).apply(variables, image) for pool in pools}
    return outputs, {name: captured[name]["__call__"][0] for name in backbone.blocks}


def _train(
    backbone: nn.Module, variables: dict, image: jax.Array, direction: jax.Array
) -> tuple[dict, dict, jax.Array]:
    """Returns gradients of sum(output * direction), variables that training changes, and output."""
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        output, changed = backbone.apply(
            {"params": params, **state},
            image,
            Context(train=True),
            mutable=list(state),
            rngs={"dropout": jax.random.key(0)},
        )
        return (output * direction).sum(), (changed, output)

    gradient, (changed, output) = jax.grad(loss, has_aux=True)(variables["params"])
    return gradient, changed, output


_train_fast = jax.jit(_train, static_argnames="backbone")
# Compiles in half the time; for float64, which checks algebra and not speed.
_train_unoptimised = jax.jit(
    _train, static_argnames="backbone", compiler_options={"xla_backend_optimization_level": 0}
)


def parameters(backbone: nn.Module, size: int = 224) -> dict[str, int]:
    """Returns the number of parameters of every block."""
    params = _shapes(backbone, size)["params"]
    return {name: sum(x.size for x in jax.tree.leaves(block)) for name, block in params.items()}


@dataclass(frozen=True)
class Backbone:
    """One of our backbones with weights.

    Attributes:
      module: the backbone itself.
      mappings: names of weights that it reads.
      variables: its parameters and running statistics.
    """

    module: nn.Module
    mappings: tuple[WeightMapping, ...]
    variables: dict

    def __call__(self, image: np.ndarray, **options) -> jax.Array:
        """Returns the output in evaluation; `options` replace some of the backbone's."""
        module = self.module.clone(**options)
        return _evaluate(module, self.variables, image, (module.pool,))[0][module.pool]

    def evaluate(self, image: np.ndarray, *pools: str) -> tuple[dict, dict]:
        """Returns the outputs of these pools, and that of every block, in evaluation."""
        outputs, layers = _evaluate(self.module, self.variables, image, pools)
        return outputs, {name: layers[name] for name in self.module.blocks}  # in order

    def train(self, image: np.ndarray, direction: np.ndarray) -> tuple[dict, dict, jax.Array]:
        """Returns what a training step of all blocks gives.

        These are the gradients of sum(output * direction), the variables that the step changes, and
        the output.
        """
        return self._train(self._in_train_mode(), self.variables, image, direction)

    def training_program(self, image: np.ndarray, direction: np.ndarray) -> str:
        """Returns the program of `train` as text."""
        traced = self._train.trace(self._in_train_mode(), self.variables, image, direction)
        return str(traced.jaxpr)

    def in_float64(self, **options) -> "Backbone":
        """Returns the backbone with other options, to run under the fixture `in_float64`."""
        module = double.module(self.module.clone(**options))
        return Backbone(module, self.mappings, double.cast(self.variables))

    def read_gradients(self, tensors: Mapping) -> dict:
        """Returns PyTorch's gradients as a tree of our parameters."""
        return read_weights(tensors, self.mappings, self.variables["params"], origin="gradients")

    @property
    def _train(self) -> Callable:
        return _train_unoptimised if self.module.dtype == np.float64 else _train_fast

    def _in_train_mode(self) -> nn.Module:
        return self.module.clone(train_mode_blocks=self.module.blocks)


def read(
    module: nn.Module, mappings: tuple[WeightMapping, ...], tensors: Mapping, *, size: int
) -> Backbone:
    """Returns a backbone for images of `size` pixels with the tensors of a checkpoint."""
    shapes = _shapes(module, size)
    tree = read_weights(tensors, mappings, merge_collections(shapes), origin="PyTorch")
    return Backbone(module, mappings, split_collections(tree, shapes))


def assert_close(ours, theirs, tolerance: float = 1e-5, name: str = "") -> None:
    """Asserts that differences are at most `tolerance` of the largest magnitude."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert np.shape(ours) == theirs.shape, name
    difference = np.abs(np.asarray(ours) - theirs).max()
    assert difference <= tolerance * np.abs(theirs).max(), name


def assert_trees_close(ours: Mapping, theirs: Mapping, tolerance: float = 1e-5) -> None:
    """Asserts that each tensor is close, relative to its own largest magnitude.

    A tensor of theirs that is zero apart from rounding, such as the gradient of a key's bias, has
    another bound: ours must not exceed a millionth of the largest magnitude of all either.
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
