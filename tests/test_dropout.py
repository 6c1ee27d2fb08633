"""Dropout by the numbers of rows."""

import jax
import jax.numpy as jnp
import numpy as np

from pixelrec_jax.dropout import RowDropout

ROWS, SHAPE, RATE = 64, (5, 20), 0.25


def _dropped(x, row):
    return RowDropout(RATE).apply({}, x, row, rngs={"dropout": jax.random.key(0)})


def test_a_row_has_the_same_dropout_wherever_it_stands():
    x = jnp.ones((ROWS, *SHAPE))
    number = jnp.arange(ROWS)
    whole = _dropped(x, number)
    order = np.random.default_rng(0).permutation(ROWS)[:20]
    np.testing.assert_array_equal(_dropped(x[:20], number[order]), whole[order])
    assert not np.array_equal(whole[0], whole[1])


def test_entries_are_dropped_at_the_rate_and_others_scaled():
    dropped = _dropped(jnp.full((ROWS, *SHAPE), 3.0), jnp.arange(ROWS))
    np.testing.assert_allclose(np.unique(dropped), [0, 3 / (1 - RATE)], rtol=1e-6)
    share = np.mean(np.asarray(dropped) == 0)
    deviation = (RATE * (1 - RATE) / dropped.size) ** 0.5
    assert abs(share - RATE) < 4 * deviation


def test_nothing_is_dropped_without_numbers():
    x = jnp.ones((ROWS, *SHAPE))
    assert _dropped(x, None) is x
