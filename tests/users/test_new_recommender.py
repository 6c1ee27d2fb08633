"""A recommender of one's own is a file, a line of the registry and an entry of the configs."""

import jax
import jax.numpy as jnp
import pytest

from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.configs.recommenders import RECOMMENDERS, Hyperparameters, RecommenderSettings
from pixelrec_jax.data.types import History
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Number, Option
from pixelrec_jax.training import train
from pixelrec_jax.users import USER_ENCODERS
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings
from tests.tiny import tiny_config


class Recency(UserEncoder):
    """Sums the items of the history; newer items weigh more."""

    decay: float = Option(
        "weight of an item as a multiple of the next one's", Number(above=0, below=1)
    ).field(0.5)

    item_encoders = ("id", "features")
    why_not_others = "this is a test; use item=id"

    def __call__(self, history: History, *, train: bool) -> jax.Array:
        x = visible_embeddings(history, show_padding=False)
        weight = self.decay ** jnp.arange(x.shape[1])[::-1]
        return jnp.einsum("l,bld->bd", weight, x)[:, None]


@pytest.fixture
def _recency(monkeypatch):
    monkeypatch.setitem(USER_ENCODERS, "recency", Recency)
    settings = RecommenderSettings(
        paper="none",
        results="none",
        task={"name": "prefixes"},
        width=32,
        ids=Hyperparameters(lr=1e-2, weight_decay=0.0, batch_size=64),
        options={"decay": 0.7},
    )
    monkeypatch.setitem(RECOMMENDERS, "recency", settings)


@pytest.mark.usefixtures("_recency")
def test_it_trains_and_is_ranked(toy_dataset, tmp_path):
    config = tiny_config("user=recency,item=id,dataset=toy", toy_dataset)
    assert config.user.to_dict() == {"name": "recency", "dtype": "float32", "decay": 0.7}
    config.train.epochs = 1
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result["best_step"] > 0
    assert result["test"]["model"]["all"]["recall@10"]["value"] > 0


@pytest.mark.usefixtures("_recency")
@pytest.mark.parametrize(
    ("words", "key", "value", "message"),
    [
        ("item=id", "decay", 1.0, r"user\.decay=1\.0; expected more than 0 and less than 1"),
        ("item=id", "decya", 0.5, r"no key 'user\.decya'; did you mean 'user\.decay'"),
        (
            "item=semantic_ids",
            "decay",
            0.5,
            "cannot take item=semantic_ids: this is a test",
        ),
        ("item=id", "name", "recenzy", "unknown user encoder 'recenzy'; did you mean 'recency'"),
    ],
)
def test_what_it_does_not_take_is_one_line(toy_dataset, tmp_path, words, key, value, message):
    config = tiny_config(f"user=recency,{words},dataset=toy", toy_dataset)
    config.user[key] = value
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.usefixtures("_recency")
def test_its_option_has_a_meaning():
    assert meaning("user.decay") == Recency.__dataclass_fields__["decay"].metadata["option"].meaning
