"""Vision transformer (Dosovitskiy et al. 2021), in the form CLIP uses (Radford et al. 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.weights import Rule


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm transformer block over [M, S, C]."""

    heads: int
    mlp: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float[M, S, C] for float[M, S, C]."""
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        y = norm("norm_1")(x)
        query, key, value = (split(dense(width, n)(y)) for n in ("query", "key", "value"))
        context = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(width, "out")(context)
        y = quick_gelu(dense(self.mlp, "mlp_in")(norm("norm_2")(x)))
        return x + dense(width, "mlp_out")(y)


class Stem(nn.Module):
    """Patches, class token, position embedding and the layer norm before the first block."""

    width: int
    patch: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Returns tokens float[M, S, C] for float[M, H, W, 3]; S = 1 + patches."""
        m, height, breadth, channels = image.shape
        p, rows, columns = self.patch, height // self.patch, breadth // self.patch
        # A convolution whose stride is its kernel is one matrix product over flattened patches.
        x = image.reshape(m, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(m, rows * columns, p * p * channels)
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="patch")(x)
        init = nn.initializers.normal(0.02)
        token = self.param("class_token", init, (self.width,), jnp.float32)
        token = jnp.broadcast_to(token.astype(x.dtype), (m, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        position = self.param("position", init, (x.shape[1], self.width), jnp.float32)
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(
            x + position.astype(x.dtype)
        )


class VisionTransformer(nn.Module):
    """Maps images to tokens, class token first.

    Attributes:
      width: C.
      depth: number of blocks.
      heads: attention heads.
      patch: side of a square patch in pixels; divides the image's sides.
      mlp: width of the hidden layer of each block.
      final_norm: layer norm after the last block. Not for CLIP: the reference reads its last
        hidden state, which comes before that norm.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp: int
    epsilon: float = 1e-5
    final_norm: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parts from pixels to tokens, the unit of freezing."""
        blocks = ("stem", *(f"block_{n}" for n in range(self.depth)))
        return (*blocks, "norm") if self.final_norm else blocks

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Returns float[M, S, C] for float[M, H, W, 3]."""
        x = Stem(self.width, self.patch, self.epsilon, self.dtype, name="stem")(image)
        block = nn.remat(Block) if self.remat else Block
        for n in range(self.depth):
            x = block(self.heads, self.mlp, self.epsilon, self.dtype, name=f"block_{n}")(x)
        if self.final_norm:
            x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return x


# transformers 4 and the hub write the prefix, transformers 5 saves a vision model without it.
_TOWER = r"(?:vision_model\.)?"
_LAYER = rf"{_TOWER}encoder\.layers\.(\d+)"
CLIP_RULES = (
    Rule(rf"{_TOWER}embeddings\.class_embedding", "stem/class_token"),
    Rule(rf"{_TOWER}embeddings\.patch_embedding\.weight", "stem/patch/kernel", "patchify"),
    Rule(rf"{_TOWER}embeddings\.position_embedding\.weight", "stem/position"),
    Rule(rf"{_TOWER}pre_layrnorm\.weight", "stem/norm/scale"),  # the misspelling is CLIP's
    Rule(rf"{_TOWER}pre_layrnorm\.bias", "stem/norm/bias"),
    *(
        rule
        for source, target in {
            "self_attn.q_proj": "query",
            "self_attn.k_proj": "key",
            "self_attn.v_proj": "value",
            "self_attn.out_proj": "out",
            "mlp.fc1": "mlp_in",
            "mlp.fc2": "mlp_out",
        }.items()
        for rule in (
            Rule(rf"{_LAYER}\.{source}\.weight", rf"block_\1/{target}/kernel", "transpose"),
            Rule(rf"{_LAYER}\.{source}\.bias", rf"block_\1/{target}/bias"),
        )
    ),
    Rule(rf"{_LAYER}\.layer_norm([12])\.weight", r"block_\1/norm_\2/scale"),
    Rule(rf"{_LAYER}\.layer_norm([12])\.bias", r"block_\1/norm_\2/bias"),
    # Not part of the tokens: CLIP's text tower, its projections and its final norm.
    Rule(rf"{_TOWER}post_layernorm\..*", None),
    Rule(r"text_model\..*|(visual|text)_projection\..*|logit_scale|.*\.position_ids", None),
)
