"""A handful of interactions and images, and what `prepare` makes of them."""

import pytest
from PIL import Image

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import prepare as program
from pixelrec_jax.system.errors import UserError

HEADER = "item_id,user_id,timestamp\n"
# User b appears first; a has two ties at 5, written c before d; item d appears third.
ROWS = (
    ("c", "b", 9),
    ("a", "b", 3),
    ("d", "b", 3),
    ("c", "a", 5),
    ("d", "a", 5),
    ("a", "a", 1),
    ("e", "a", 5),
)


def lines(rows):
    return "".join(f"{item},{user},{time}\n" for item, user, time in rows)


def draw(folder, item_id, color, suffix=".jpg"):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (6, 4), color).save(folder / f"{item_id}{suffix}")


def run(place, **options):
    return program.prepare(place / "x.csv", place / "images", place / "out", **options)


def refused(place, match, **options):
    """Asserts one line of error that matches, and that the folder is left as it was."""
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        run(place, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in place.iterdir()) == before


def sequences(place):
    """User id -> item ids in order, through `load`."""
    stored = load_interactions(place / "out")
    item_ids, user_ids = stored.item_ids(), stored.user_ids()
    return {
        user_ids[user - 1]: "".join(
            item_ids[int(item) - 1]
            for item in stored.items[stored.offsets[user] : stored.offsets[user + 1]]
        )
        for user in range(1, stored.num_users)
    }
