"""A toy dataset: covers, and users whose visual tastes drift, in PixelRec's raw format.

This is the default dataset of the project and is made in seconds: `interactions.csv`,
`images/<item_id>.jpg` and `items.csv`. Users choose by colours, shape and texture. So pixels help
with cold items, which are released so late that they have hardly any training interactions, while
ids cannot.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from pixelrec_jax.system import errors
from pixelrec_jax.system.files import LOCK, work_folder

# The two tones of a background, on a circle of hues; a user's taste moves along the circle.
PALETTES = {
    "crimson": ("#c4303c", "#8f1e30"),
    "coral": ("#ea6a45", "#bd4529"),
    "amber": ("#e89a2c", "#bd6f16"),
    "citron": ("#b9ae2c", "#8a801c"),
    "moss": ("#749a3c", "#4c6d27"),
    "emerald": ("#2a9a65", "#176b45"),
    "teal": ("#1f979c", "#106873"),
    "azure": ("#3f8bd6", "#265dab"),
    "indigo": ("#4a51bb", "#30348c"),
    "violet": ("#8650bc", "#5f358e"),
    "orchid": ("#c258ae", "#933a86"),
    "rose": ("#e25c86", "#b53a64"),
}
# The colour of the shape.
PAINTS = {
    "cream": "#fff6e2",
    "lemon": "#ffe45c",
    "mint": "#9af5c8",
    "sky": "#a5dcff",
    "blush": "#ffb3cf",
    "navy": "#191c40",
}

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # By symmetry all edges are folded to one: from the tip (1.1, 0) to the notch at radius 0.5.
    half = math.pi / 5
    fold = half - np.abs(np.mod(np.arctan2(x, -y), 2 * half) - half)
    normal_x, normal_y = 0.5 * math.sin(half), 1.1 - 0.5 * math.cos(half)
    ahead = np.hypot(x, y) * (np.cos(fold) * normal_x + np.sin(fold) * normal_y) - 1.1 * normal_x
    return ahead / math.hypot(normal_x, normal_y)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x) * 0.6, 0.55 - y * 0.6
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(0.125)
    side = np.maximum(x + y, 0) / 2
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - side, y - side)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip) / 0.6


# Signed distances, negative inside, to shapes around the origin with a radius of about one.
SHAPES: dict[str, Field] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.82,
    "triangle": lambda x, y: np.maximum(np.abs(x) * math.sqrt(0.75) - y / 2, y) - 0.55,
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.23,
    "cross": lambda x, y: (
        np.minimum(np.abs(x), np.abs(y)).clip(np.maximum(np.abs(x), np.abs(y)) - 0.65) - 0.3
    ),
    "heart": _heart,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.82 - np.hypot(x - 0.55, y + 0.15)),
}
# Waves with a period and height of about one; the background has its second tone where positive.
TEXTURES: dict[str, Field] = {
    "plain": lambda x, y: np.full_like(x, -1),
    "stripes": lambda x, y: np.sin(math.tau * x),
    "dots": lambda x, y: np.sin(math.tau * x) * np.sin(math.tau * y) * 1.6 - 0.5,
    "checks": lambda x, y: 2 * np.sin(math.pi * x) * np.sin(math.pi * y),
    "waves": lambda x, y: np.sin(math.tau * (y + 0.3 * np.sin(math.pi * x))),
    "rings": lambda x, y: np.sin(math.tau * np.hypot(x, y)),
}
FIELDS: dict[str, dict[str, Field]] = {"shape": SHAPES, "texture": TEXTURES}
ATTRIBUTES = {"palette": PALETTES, "paint": PAINTS, **FIELDS}
# The attributes that a category prefers, in the order of ATTRIBUTES.
CATEGORIES = {
    "music": ("indigo violet", "lemon sky", "circle ring moon", "waves rings"),
    "sport": ("moss emerald", "cream lemon", "star circle cross", "stripes checks"),
    "travel": ("teal azure", "cream mint", "triangle moon star", "waves plain"),
    "food": ("coral amber citron", "cream navy", "circle square heart", "checks dots"),
    "romance": ("orchid rose crimson", "blush cream", "heart ring moon", "dots plain"),
    "games": ("azure indigo teal", "mint navy", "cross square triangle", "checks rings"),
}
CATEGORY_SHARE = 0.5  # share of attributes that follow the category; the others are uniform

DAY = 86_400
START, SPAN = 1_577_836_800, 730 * DAY  # 2020-01-01 UTC, and seconds from then to the crawl
LENGTHS, LENGTH_SCALE = (6, 40), 8.0  # interactions of a user; scale of the exponential tail
# The crawl ends shortly after a last season of releases. Most choices in it are a user's last ones:
# they are targets and not training interactions. So the items of the season are cold.
SEASON = 10 * DAY
RELEASED_AT_START, RELEASED_IN_SEASON = 0.45, 0.25  # shares of items; all others lie between
STILL_ACTIVE = 0.5  # share of users whose last interaction is in the season
MIN_ITEMS = 100  # then the items released at the start are enough for the longest history

# A user chooses by a softmax over the released items. The logits add popularity (a Zipf law with
# this exponent), a bonus for new items, and the match of the attributes; colour counts most.
POPULARITY = 0.7
FRESHNESS, FRESH_AGE = 1.5, 15 * DAY
MATCH = {"palette": 6.0, "paint": 5.0, "shape": 2.5, "texture": 1.5}
PALETTE_WIDTH = 0.8  # width of a match along the circle
# Drift of taste in a step: standard deviation of the walk along the circle; probability of another
# paint, shape or texture.
PALETTE_STEP, SWITCH = 0.25, 0.05
GRID = 10  # positions of a taste from one palette to the next on the circle


def generate(
    out: Path | str, *, seed: int = 0, users: int = 2500, items: int = 1200, image_size: int = 64
) -> None:
    """Writes the dataset to the folder `out`, complete or not at all.

    Raises:
      UserError: a number is out of range, or the folder is not empty or cannot be written.
    """
    bounds = {"seed": (seed, 0), "users": (users, 1), "items": (items, MIN_ITEMS)}
    for name, (value, least) in bounds.items():
        if value < least:
            raise errors.UserError(f"--{name} is {value}; expected at least {least}")
    if not 16 <= image_size <= 1024:
        raise errors.UserError(f"--image_size is {image_size}; expected 16 to 1024 pixels")
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise errors.UserError(f"{out} exists and is not an empty folder; choose another --out")

    catalog_rng, user_rng, cover_rng = np.random.default_rng(seed).spawn(3)
    catalog = draw_catalog(catalog_rng, items)
    interactions = draw_interactions(user_rng, catalog, users)
    with work_folder(out) as work:
        try:
            (work / "images").mkdir()
            interactions.write_csv(work / "interactions.csv")
            named = catalog.drop("weight")
            for kind, known in ({"category": CATEGORIES} | ATTRIBUTES).items():
                named = named.with_columns(pl.col(kind).replace_strict(dict(enumerate(known))))
            named.write_csv(work / "items.csv")
            for chunk in catalog.iter_slices(max(1, 2**20 // image_size**2)):  # bounds the memory
                covers = draw_covers(cover_rng, chunk, image_size)
                for item_id, cover in zip(chunk["item_id"], covers, strict=True):
                    # Chroma subsampling would blur the edges of such small covers.
                    path = work / "images" / f"{item_id}.jpg"
                    Image.fromarray(cover).save(path, quality=90, subsampling=0)
            work.rename(out)
            (out / LOCK).unlink()
        except OSError as error:
            raise errors.UserError(
                f"cannot write {out}: {error}; mend this, or give another --out"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def draw_catalog(rng: np.random.Generator, items: int) -> pl.DataFrame:
    """Returns a row for each item: category and attributes as indices, `weight` for popularity."""
    category = rng.integers(len(CATEGORIES), size=items)
    attributes = {"category": category}
    for place, (kind, known) in enumerate(ATTRIBUTES.items()):
        likes = [[list(known).index(n) for n in c[place].split()] for c in CATEGORIES.values()]
        typical = np.array([rng.choice(likes[c]) for c in category])
        follows = rng.random(items) < CATEGORY_SHARE
        attributes[kind] = np.where(follows, typical, rng.integers(len(known), size=items))

    quantile = rng.permutation(items) / items  # decides which of the three release periods
    share = rng.random(items)  # of the span
    share[quantile < RELEASED_AT_START] = 0
    share = np.where(quantile < 1 - RELEASED_IN_SEASON, share, 1 - share * SEASON / SPAN)
    return pl.DataFrame(
        {
            "item_id": [f"i{k}" for k in range(items)],
            **attributes,
            "release_time": START + (share * SPAN).astype(np.int64),
            "weight": (1.0 + rng.permutation(items)) ** -POPULARITY,
        }
    )


def draw_interactions(rng: np.random.Generator, catalog: pl.DataFrame, users: int) -> pl.DataFrame:
    """Returns `item_id, user_id, timestamp`, sorted by timestamp; no two rows have the same one."""
    length = LENGTHS[0] + rng.exponential(LENGTH_SCALE, users).astype(int)
    length = -np.sort(-length.clip(max=LENGTHS[1]))  # users still active at a step come first
    when = _draw_times(rng, length)

    item = {column: catalog[column].to_numpy() for column in catalog.columns}
    match = {kind: MATCH[kind] * np.eye(len(known)) for kind, known in ATTRIBUTES.items()}
    circle = len(PALETTES)
    gap = np.abs(np.arange(circle) - np.arange(circle * GRID)[:, None] / GRID)
    gap = np.minimum(gap, circle - gap)  # [circle * GRID, circle]
    match["palette"] = MATCH["palette"] * np.exp(-((gap / PALETTE_WIDTH) ** 2) / 2)

    taste = {kind: rng.integers(len(table), size=users) for kind, table in match.items()}
    chosen = np.zeros((users, LENGTHS[1]), np.int64)
    taken = np.zeros((users, len(catalog)), bool)
    for step in range(length[0]):
        active = np.arange(np.count_nonzero(length > step))
        age = when[active, step, None] - item["release_time"]  # [active, items]
        logits = np.log(item["weight"]) + FRESHNESS * np.exp(-np.maximum(age, 0) / FRESH_AGE)
        for kind, table in match.items():
            logits += table[taste[kind][active]][:, item[kind]]
        logits += rng.gumbel(size=logits.shape)  # the largest is then a draw from the softmax
        logits[(age < 0) | taken[active]] = -np.inf
        chosen[active, step] = logits.argmax(1)
        taken[active, chosen[active, step]] = True

        for kind, table in match.items():
            if kind == "palette":
                walk = np.rint(rng.normal(0, PALETTE_STEP * GRID, users)).astype(int)
                taste[kind] = (taste[kind] + walk) % len(table)
            else:
                another = rng.integers(len(table), size=users)
                taste[kind] = np.where(rng.random(users) < SWITCH, another, taste[kind])

    row, step = np.nonzero(np.arange(LENGTHS[1]) < length[:, None])
    order = np.argsort(when[row, step], kind="stable")
    row, step = row[order], step[order]
    tick = np.arange(len(row))  # separates equal times, as a reader may sort them in any order
    name = rng.permutation(users)  # otherwise the id would reveal the length
    return pl.DataFrame(
        {
            "item_id": catalog["item_id"].gather(chosen[row, step]),
            "user_id": [f"u{k}" for k in name[row]],
            "timestamp": np.maximum.accumulate(when[row, step] - tick) + tick,
        }
    )


def _draw_times(rng: np.random.Generator, length: np.ndarray) -> np.ndarray:
    """Returns increasing times int64[users, longest] in seconds; the first `length` are used."""
    users = len(length)
    end = SPAN * rng.uniform(0.05, 1, users)
    end = np.where(rng.random(users) < STILL_ACTIVE, SPAN - SEASON * rng.random(users), end)
    begin = np.maximum(0, end - 3 * DAY - SPAN * rng.exponential(0.15, users))
    share = rng.random((users, LENGTHS[1]))
    share[np.arange(LENGTHS[1]) >= length[:, None] - 1] = 1  # the last interaction is at the end
    share.sort(axis=1)
    return (START + begin[:, None] + share * (end - begin)[:, None]).astype(np.int64)


def draw_covers(rng: np.random.Generator, catalog: pl.DataFrame, size: int) -> np.ndarray:
    """Returns the covers of the items, RGB uint8[items, size, size, 3]."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (len(catalog), 1, 1, *shape)).astype(np.float32)

    def turn(angle: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def field(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        values = np.empty((*x.shape, 1), np.float32)
        for index, function in enumerate(FIELDS[kind].values()):
            rows = (catalog[kind] == index).to_numpy()
            values[rows, ..., 0] = function(x[rows], y[rows])
        return values  # [items, size, size, 1]

    axis = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    x, y = axis[None, None, :], axis[None, :, None]
    colours = [[(*tones, paint) for paint in PAINTS.values()] for tones in PALETTES.values()]
    rgb = np.array([[[[*bytes.fromhex(c[1:])] for c in p] for p in row] for row in colours])
    rgb = rgb[catalog["palette"].to_numpy(), catalog["paint"].to_numpy(), None, None] / 255
    rgb = rgb.astype(np.float32) * uniform(0.88, 1.08, 1, 1) + uniform(-0.05, 0.05, 1, 3)
    ground, tone, paint = np.moveaxis(rgb, -2, 0)  # [items, 1, 1, 3]

    # Edges fade over about a pixel, as if a larger drawing was resized.
    period = uniform(0.26, 0.4)
    across, along = turn(uniform(0, math.tau), x - uniform(-1, 1), y - uniform(-1, 1))
    wave = field("texture", across / period, along / period) * period[..., None]
    picture = ground + (tone - ground) * np.clip(0.5 + wave * size / 12, 0, 1)

    radius, angle = uniform(0.45, 0.68), uniform(-0.5, 0.5)
    left, top = uniform(-0.22, 0.22), uniform(-0.22, 0.22)
    for shift, blur, colour, opacity in ((0.07, 0.17, 0.0, 0.35), (0.0, 2 / size, paint, 1.0)):
        turned = turn(angle, x - left - shift, y - top - shift)
        distance = field("shape", *(a / radius for a in turned)) * radius[..., None]
        picture += (colour - picture) * np.clip(0.5 - distance / blur, 0, 1) * opacity

    picture *= 1 + 0.1 * turn(uniform(0, math.tau), x, y)[0][..., None]  # light from one side
    picture += 0.015 * rng.standard_normal(picture.shape, np.float32)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
