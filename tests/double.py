"""Two ways to one result in float64, where a difference is not rounding but algebra.

The fixture `in_float64` makes the program compute so. Modules have a dtype of their own, and Flax
makes float32 variables: a test asks for other modules, and casts the variables.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def compute_in_float64(patch: pytest.MonkeyPatch) -> None:
    """Makes float64 of what the program computes in float32 whatever its modules' dtype."""
    patch.setattr(jnp, "float32", jnp.float64)  # the program asks JAX for the name
    patch.setattr(jax.nn, "dot_product_attention", _attention)  # JAX's has a float32 softmax


def _attention(query, key, value, *, bias=0.0):
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5 + bias
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)


def module(original: nn.Module) -> nn.Module:
    """The same module with modules that compute in float64, a recommender's or encoder's."""
    changed = {
        name: module(getattr(original, name))
        for name in ("item_encoder", "user_encoder", "backbone")
        if hasattr(original, name)
    }
    if hasattr(original, "dtype"):
        changed["dtype"] = jnp.dtype("float64")
    return original.clone(**changed)


def cast(tree):
    """The tree with float64 in the place of float32."""
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def assert_close(actual, expected):
    """Differences are at most 1e-10 of the largest magnitude of all leaves: 500,000 roundings."""
    assert {x.dtype for x in jax.tree.leaves((actual, expected))} == {np.dtype("float64")}
    atol = 1e-10 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)
