"""Items as frozen features, alone or beside a trainable table of ids (the paper's ViNet)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from pixelrec_jax.data.types import PAD, Array, Items
from pixelrec_jax.items.encoder import ItemEncoder
from pixelrec_jax.items.id import IdEncoder
from pixelrec_jax.items.projection import KERNEL_INITS, project


def _feature_of(items: Items) -> Shaped[Array, "M ..."]:
    assert items.feature is not None, "a store of features fills the items of these encoders"
    return items.feature


class FeatureEncoder(ItemEncoder):
    """The base of item encoders that read features.

    Attributes:
      num_items: N, the mask item included if there is one.
      has_ids: whether a table of ids stands beside the features.
      mask_item: the id of the mask item, if there is one.
      width: D.
      dnn_layers: widths of dense layers below the last (Figure 10); only `DenseFeatures` has them.
      weight_init: how all weights and tables start, a key of `KERNEL_INITS`.
    """

    num_items: int
    has_ids: bool
    mask_item: int | None
    width: int
    dnn_layers: tuple[int, ...] = ()
    weight_init: str = "normal"

    ids_needed: ClassVar[bool] = False

    @property
    def id_table(self) -> tuple[str, ...] | None:
        """See `ItemEncoder`."""
        return ("ids", "table") if self.has_ids else None

    def id_vector(self, items: Items, width: int) -> Float[Array, "M {width}"]:
        """Returns the items' rows of a trainable table, float32."""
        return IdEncoder(self.num_items, width, self.weight_init, name="ids")(items, train=False)

    def dense(self, features: int, name: str, *, use_bias: bool = False) -> nn.Dense:
        """Returns a dense layer."""
        return nn.Dense(
            features, use_bias=use_bias, kernel_init=KERNEL_INITS[self.weight_init], name=name
        )


class DenseFeatures(FeatureEncoder):
    """ReLU(W [f; e] + b) for features f and the id's vector e, if the encoder has ids.

    The reference's SASRec on frozen features has these item vectors. Features of several locations
    are averaged after the projection. The vector of the mask item is learned.
    """

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {self.width}"]:
        """Returns an item's vector, E = D, float32."""
        x = _feature_of(items)
        if self.has_ids:
            vector = self.id_vector(items, self.width)
            vector = jnp.expand_dims(vector, range(1, x.ndim - 1))
            vector = jnp.broadcast_to(vector, (*x.shape[:-1], self.width))
            x = jnp.concatenate([x, vector], axis=-1)
        x = project(x, (*self.dnn_layers, self.width), init=self.weight_init)
        return with_mask_vector(self, x, items, self.mask_item)


class BiasedFeatures(FeatureEncoder):
    """[e; W f; w . f]: two halves of D / 2 and a visual bias (VBPR, He and McAuley, AAAI 2016).

    Without ids, W f has width D.
    """

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {self.width+1}"]:
        """Returns an item's vector, E = D + 1, float32; the features of locations are averaged."""
        feature = mean_over_locations(_feature_of(items))
        width = self.width // 2 if self.has_ids else self.width
        vectors = [self.dense(width, "visual")(feature), self.dense(1, "bias")(feature)]
        if self.has_ids:
            vectors.insert(0, self.id_vector(items, self.width - width))
        return jnp.concatenate(vectors, axis=-1)


class FeatureComponents(FeatureEncoder):
    """[e; ReLU(W f + b) of every location] (ACF, Chen et al., SIGIR 2017).

    Only e is scored; ACF reads the locations of the items in a history.
    """

    ids_needed = True

    @nn.compact
    def __call__(
        self, items: Items, *, train: bool
    ) -> Float[Array, "M {self.width*(1+items.feature[0].size//items.feature.shape[-1])}"]:
        """Returns an item's vector, E = (1 + S) D for S locations, float32."""
        feature = _feature_of(items)
        feature = feature.reshape(len(items.id), -1, feature.shape[-1])
        locations = nn.relu(self.dense(self.width, "location", use_bias=True)(feature))
        locations = locations.reshape(len(items.id), -1)
        return jnp.concatenate([self.id_vector(items, self.width), locations], axis=-1)


class RawFeatures(FeatureEncoder):
    """f / |f|, without parameters, so that dot products are cosines (VisRank)."""

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {items.feature.shape[-1]}"]:
        """Returns an item's vector, E = C, float32; zeros where f is zero."""
        feature = mean_over_locations(_feature_of(items))
        length = jnp.linalg.norm(feature, axis=-1, keepdims=True)
        return feature / jnp.where(length > 0, length, 1)


class SemanticIds(ItemEncoder):
    """The mean of the trainable vectors of an item's codes (the reference's semantic ids).

    Attributes:
      codebook_size: C; codes are 0 .. C - 1 at each position.
      mask_item, width, weight_init: see `FeatureEncoder`.
    """

    codebook_size: int
    mask_item: int | None
    width: int
    weight_init: str = "normal"

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {self.width}"]:
        """Returns an item's vector, E = D, float32."""
        codes = _feature_of(items)
        positions = codes.shape[-1]
        rows = self.codebook_size + 1  # as in the reference, one row per position is never used
        shape = (positions * rows, self.width)
        table = self.param("codebook", KERNEL_INITS[self.weight_init], shape, jnp.float32)
        vector = jnp.mean(table[codes + (jnp.arange(positions) * rows)[None]], axis=-2)
        # In the reference, code 0 of the first position gets no gradient. Padding has that code,
        # and items have it only if the codes of a file count from 0.
        vector = jnp.where((items.id == PAD)[:, None], jax.lax.stop_gradient(vector), vector)
        return with_mask_vector(self, vector, items, self.mask_item)


def with_mask_vector(
    encoder: nn.Module, vector: Float[Array, "M D"], items: Items, mask_item: int | None
) -> Float[Array, "M D"]:
    """Returns the vectors with a learned one for the mask item, if there is one."""
    if mask_item is None:
        return vector
    mask = encoder.param("mask", nn.initializers.normal(0.02), vector.shape[-1:], jnp.float32)
    return jnp.where((items.id == mask_item)[:, None], mask[None], vector)


def mean_over_locations(feature: Float[Array, "M *locations C"]) -> Float[jax.Array, "M C"]:
    """Returns the mean of each item's features over the locations of its image."""
    return jnp.mean(feature.reshape(len(feature), -1, feature.shape[-1]), axis=1)


FEATURE_HEADS: dict[str, type[FeatureEncoder]] = {
    "dense": DenseFeatures,
    "biased": BiasedFeatures,
    "components": FeatureComponents,
    "raw": RawFeatures,
}
