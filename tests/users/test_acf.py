import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.data.types import History
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.users.acf import ACF
from tests.tiny import tiny_config

D, LOCATIONS = 6, 4


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def user_in_plain_numpy(params: dict, user: int, items: list[np.ndarray]) -> np.ndarray:
    """Equations 8, 9 and 11 to 13 of the paper, without the bias of the logits."""

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name].get("bias", 0)

    def attention(name, x):
        return softmax(dense(name, np.maximum(x, 0))[..., 0])

    row = params["table"][user]
    state = dense("user", row)
    if not items:
        return state
    parts = [vector.reshape(1 + LOCATIONS, D) for vector in items]
    item = np.stack([part[0] for part in parts])
    looks = []
    for part in parts:
        hidden = dense("location", part[1:]) + dense("location_user", row)
        looks.append(attention("location_attention", hidden) @ part[1:])
    hidden = state + dense("item", item) + dense("looks", np.stack(looks))
    return state + attention("item_attention", hidden) @ item


@pytest.mark.numerical
def test_states_are_those_of_the_equations():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=(3, 5, (1 + LOCATIONS) * D)).astype(np.float32)
    item = rng.integers(1, 9, (3, 5))
    item[1, :3] = item[2] = 0  # a short history and an empty one
    history = History(item_embeddings=vector, item=item, user=np.array([2, 1, 3]))
    model = ACF(num_users=4, width=D, dtype=jnp.float32)
    variables = model.init(jax.random.key(0), history, train=False)
    # Biases start at zero.
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), variables["params"])
    plain = jax.device_get(params)
    expected = [
        user_in_plain_numpy(plain, user, list(vector[n][item[n] > 0]))
        for n, user in enumerate(history.user)
    ]
    state = model.apply({"params": params}, history, train=False)[:, 0]
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("item", ["id", "features", "semantic_ids", "clip_vit_b32"])
def test_anything_but_ids_and_features_is_one_clear_line(item):
    config = tiny_config(f"user=acf,item={item},dataset=custom")
    with pytest.raises(UserError, match=f"cannot take item={item}: .* use item=id") as error:
        build_recommender(config, num_items=10, num_users=5)
    assert "\n" not in str(error.value)
    config = tiny_config("user=acf,item=id+features,dataset=custom")
    config.item.feature_head = "dense"
    with pytest.raises(
        UserError,
        match=r"item\.feature_head='dense' does not suit .* use item.feature_head=components",
    ):
        build_recommender(config, num_items=10, num_users=5)
