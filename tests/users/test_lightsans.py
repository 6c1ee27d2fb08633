import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.data.types import History
from pixelrec_jax.users.lightsans import LightSANs


@pytest.mark.parametrize("query_softmax", [False, True])
@pytest.mark.parametrize("show_padding", [False, True])
def test_padding_is_visible_on_request_only(query_softmax, show_padding):
    model = LightSANs(
        num_users=1,
        width=16,
        dtype=jnp.float32,
        layers=2,
        init_std=0.3,
        query_softmax=query_softmax,
        show_padding=show_padding,
    )
    vector = np.random.default_rng(0).normal(size=(1, 10, 16)).astype(np.float32)
    item = np.where(np.arange(10) >= 6, np.arange(10), 0)[None]
    history = History(item_embeddings=vector, item=item, user=np.zeros(1, np.int32))
    other = history.replace(item_embeddings=np.where(history.mask[..., None], vector, -vector))
    variables = model.init(jax.random.key(0), history, train=False)
    one, two = (model.apply(variables, h, train=False) for h in (history, other))
    assert np.array_equal(one, two) != show_padding
