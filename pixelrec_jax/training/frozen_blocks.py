"""The blocks of a vision encoder below the first trained one, and what they make of an item."""

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from pixelrec_jax.data.activations import Key, bytes_of
from pixelrec_jax.data.types import Items
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.training.experiment import Experiment


class FrozenBlocks:
    """The function from items with images to activations, as all tasks and meshes share it.

    Attributes:
      names: of the blocks in their order; none if the first block is trained.
      dtype: of the activations.
    """

    def __init__(self, experiment: Experiment):
        """Takes an experiment with a vision encoder."""
        config, encoder = experiment.config, experiment.model.item_encoder
        assert isinstance(encoder, PixelEncoder), "only a vision encoder has blocks"
        self._experiment = experiment
        # The mask item has a row in every task; nothing here has a backward pass.
        self._mask_item = experiment.interactions.num_items
        backbone = encoder.backbone.clone(remat=False)
        self._encoder = encoder.clone(mask_item=self._mask_item, backbone=backbone, parent=None)
        self.names = backbone.step_names[: encoder.boundary]
        self.dtype = encoder.dtype if config.item.cache_dtype == "exact" else jnp.bfloat16

    def __call__(self, variables: dict, items: Items) -> jax.Array:
        """Returns the activations [M, ...] of items with one leading axis."""
        run = nn.apply(PixelEncoder.run_backbone, self._encoder)
        return run(variables, items, self._encoder.boundary).astype(self.dtype)

    def variables_in(self, variables: dict) -> dict:
        """Returns those of a model's variables that the blocks read, by Flax collection."""
        found = {}
        for collection, tree in variables.items():
            backbone = tree.get("item_encoder", {}).get("backbone", {})
            if chosen := {name: backbone[name] for name in self.names if name in backbone}:
                found[collection] = {"backbone": chosen}
        return found

    def shape(self, variables: dict) -> tuple[int, ...]:
        """Returns the shape of the activations of all items; `variables` may be shapes."""
        row = jax.eval_shape(self, variables, self._one_item())
        return (self._mask_item + 1, *row.shape[1:])

    def lower(self, variables: dict) -> jax.stages.Lowered:
        """Returns the lowered program for one item; `variables` may be shapes."""
        return jax.jit(self.__call__).lower(variables, self._one_item())

    def key(self, variables: dict) -> Key:
        """Returns what the activations depend on; `variables` are in host memory."""
        item, store = self._experiment.config.item, self._experiment.store
        assert store is not None, "a vision encoder has images"
        program = self.lower(variables).as_text()  # another version of the code has another
        return {
            "images": store.fingerprint,
            "weights": _digest(variables),
            "program": hashlib.sha256(program.encode()).hexdigest(),
            "encoder": item.name,
            "layer": self.names[-1],
            "image_size": item.image_size,
            "normalisation": self._encoder.normalisation,
            "computed": jnp.dtype(self._encoder.dtype).name,
            "stored": jnp.dtype(self.dtype).name,
            "shape": list(self.shape(variables)),
        }

    def _one_item(self) -> Items:
        size = self._experiment.config.item.image_size
        return Items(
            id=jax.ShapeDtypeStruct((1,), jnp.int32),
            image=jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        )


def _digest(variables: dict[str, dict]) -> str:
    content = hashlib.sha256()
    for path, x in sorted(flatten_dict(variables, sep="/").items()):
        content.update(f"{path} {x.dtype}{x.shape}\n".encode())
        content.update(np.ascontiguousarray(x).data)
    return content.hexdigest()


def describe(key: Key) -> str:
    """Returns what activations are and their size, as in "activations after block_9, ..."."""
    items, *shape = key["shape"]
    return (
        f"activations of {key['encoder']} after {key['layer']}, {items:,} items of "
        f"{' x '.join(map(str, shape))} {key['stored']} ({bytes_of(key) / 1e9:,.2f} GB)"
    )
