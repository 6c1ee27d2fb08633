"""The blocks of a vision encoder below the first trained one, and what they make of an item."""

import hashlib
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from pixelrec_jax.data.activations import Key
from pixelrec_jax.data.types import Items
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.system.errors import UserError
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

    def activations(self, variables: dict) -> jax.ShapeDtypeStruct:
        """Returns shape and type of the activations of all items; `variables` may be shapes."""
        one = jax.eval_shape(self, variables, self._one_item())
        return jax.ShapeDtypeStruct((self._mask_item + 1, *one.shape[1:]), one.dtype)

    def lower(self, variables: dict) -> jax.stages.Lowered:
        """Returns the lowered program for one item; `variables` may be shapes."""
        return jax.jit(self.__call__).lower(variables, self._one_item())

    def key(self, variables: dict) -> Key:
        """Returns what the activations depend on; `variables` are in host memory.

        Raises:
          UserError: the images are in memory and have no digest.
        """
        item, store = self._experiment.config.item, self._experiment.store
        assert store is not None, "a vision encoder has images"
        if not store.fingerprint:
            raise UserError(
                "item.source=cached needs images with a digest, and data in memory have none; give "
                "the folder of a prepared dataset, or take item.source=stream"
            )
        rows = self.activations(variables)
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
            "stored": "bfloat16" if rows.dtype == jnp.bfloat16 else "float32",
            "shape": list(rows.shape),
        }

    def fits_on_devices(self, rows: jax.ShapeDtypeStruct, free: int) -> bool:
        """Returns whether each device can keep its share of all rows in half of `free` bytes.

        With several devices, each gathers the rows of all slots before it keeps its own.
        """
        experiment = self._experiment
        mesh, batches = experiment.mesh, experiment.batches
        slots = max(
            batches.num_shards * batches.most_slots,
            mesh.size * experiment.config.eval.encode_batch_size,
        )
        share = -(-rows.shape[0] // mesh.size)
        return (share + 2 * slots) * bytes_of_row(rows) <= free // 2

    def saving(self, variables: dict, flops: float, images: int) -> str:
        """Returns what caching would save of a step, one line; "" if it would save nothing.

        Args:
          variables: those of the model; may be shapes.
          flops: the operations of a step.
          images: how many images it encodes.
        """
        encoder = self._encoder
        if not self.names or encoder.backbone.first_in_train_mode(encoder.boundary):
            return ""
        variables = self.variables_in(variables)
        rows = self.activations(variables)
        cost = self.lower(variables).cost_analysis() or {}
        share = images * cost.get("flops", 0.0) / max(flops, 1.0)
        size = rows.shape[0] * bytes_of_row(rows) / 1e9
        return (
            f"frozen blocks up to {self.names[-1]} are {share:.0%} of the operations of a step; "
            f"item.source=cached would compute them once and keep {size:,.2f} GB"
        )

    def _one_item(self) -> Items:
        size = self._experiment.config.item.image_size
        image = np.broadcast_to(np.uint8(0), (1, size, size, 3))
        return Items(id=np.zeros(1, np.int32), image=image)


def bytes_of_row(rows: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of the activations of an item."""
    return math.prod(rows.shape[1:]) * rows.dtype.itemsize


def _digest(variables: dict[str, dict]) -> str:
    content = hashlib.sha256()
    for path, x in sorted(flatten_dict(variables, sep="/").items()):
        content.update(f"{path} {x.dtype}{x.shape}\n".encode())
        content.update(np.ascontiguousarray(x).data)
    return content.hexdigest()
