import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.types import History, Items
from pixelrec_jax.items.features import RawFeatures
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.users.visrank import VisRank
from tests.tiny import random_features, tiny_config

FEATURES = random_features(30, 5)
FEATURES[3] = 0  # an item without features looks like nothing


def scores_in_plain_python(history: list[int], k: int) -> list[float]:
    def cosine(a, b):
        length = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / length) if length else 0.0

    seen = [FEATURES[item] for item in history if FEATURES[item].any()]
    best = [sorted((cosine(f, x) for x in seen), reverse=True)[:k] for f in FEATURES]
    return [sum(cosines) / max(len(cosines), 1) for cosines in best]


@pytest.mark.numerical
@pytest.mark.parametrize("k", [1, 3, 100])
def test_scores_are_means_of_the_largest_cosines(k):
    histories = [[4, 7, 7, 9, 1, 2], [5], [6, 3, 8], []]  # 7 twice, 3 has no features
    padded = np.array([[0] * (6 - len(h)) + h for h in histories], np.int32)
    ids = np.arange(len(FEATURES))
    encoder = RawFeatures(num_items=30, has_ids=False, mask_item=None, width=1)
    vector = encoder.apply({}, Items(id=ids, feature=FEATURES), train=False)
    history = History(item_embeddings=vector[padded], item=padded, user=np.ones(4, np.int32))
    model = VisRank(num_users=2, width=1, dtype=jnp.float32, average_top_k=k)

    def scores(history, vector):
        state = model.apply({}, history, train=False)[:, -1]
        return model.apply({}, state, vector, method="score")

    expected = [scores_in_plain_python(h, k) for h in histories]
    np.testing.assert_allclose(jax.jit(scores)(history, vector), expected, atol=1e-6)


def test_it_is_ranked_without_training(toy_dataset, tmp_path, capsys):
    config = tiny_config("user=visrank,item=features,dataset=toy", toy_dataset)
    items = load_interactions(toy_dataset).num_items
    config.item.path = str(tmp_path / "features.npy")
    np.save(config.item.path, random_features(items, 2, 2, 5))
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert "0 parameters" in capsys.readouterr().err
    assert result["best_step"] == result["model"]["parameters"] == 0
    assert result["test"]["model"]["all"]["recall@10"]["value"] > 0
    assert train.train_and_evaluate(config, tmp_path / "run") == result
    assert train.evaluate(config, tmp_path / "run") == result
    config.train.epochs = 1
    with pytest.raises(UserError, match=r"nothing to train; give train\.epochs=0"):
        train.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize("item", ["id", "id+features", "semantic_ids", "clip_vit_b32"])
def test_anything_but_features_is_one_clear_line(item):
    config = tiny_config(f"user=visrank,item={item},dataset=custom")
    with pytest.raises(UserError, match=f"cannot take item={re.escape(item)}: .* use"):
        build_recommender(config, num_items=10, num_users=5)
    config = tiny_config("user=visrank,item=features,dataset=custom")
    config.item.feature_head = "dense"
    with pytest.raises(
        UserError, match=r"item\.feature_head='dense' does not suit .* use item.feature_head=raw"
    ):
        build_recommender(config, num_items=10, num_users=5)
