"""Shapes are said in signatures and checked: of arrays while tests run, of structs always."""

import ast
import importlib
import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from ml_collections import ConfigDict

from pixelrec_jax.data.types import Batch, History, Items
from pixelrec_jax.items.features import FEATURE_HEADS, SemanticIds
from pixelrec_jax.items.id import IdEncoder
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.items.vision.layers import prepend_token
from pixelrec_jax.losses import build_loss
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.users import USER_ENCODERS
from pixelrec_jax.users.encoder import dot_product
from pixelrec_jax.users.gru4rec import GRU4Rec
from pixelrec_jax.users.nextitnet import NextItNet
from pixelrec_jax.users.pooled import DSSM, FM
from pixelrec_jax.users.sasrec import SASRec
from pixelrec_jax.users.srgnn import SRGNN
from tests.checker import PACKAGES
from tests.tiny import ROOT


def _files() -> list[Path]:
    """Returns the modules with shapes in their signatures."""
    paths = [ROOT / Path(*package.split(".")) for package in PACKAGES]
    return [
        file
        for path in paths
        for file in (*path.rglob("*.py"), path.with_suffix(".py"))
        if file.exists()
    ]


_SHAPED = {"Bool", "Float", "Int", "Shaped"}


def _bare(annotation: ast.AST) -> list[str]:
    """Returns the arrays without a shape in an annotation; a PRNGKeyArray does not need one."""
    match annotation:
        case ast.Subscript(value=ast.Name(id=name)) if name in _SHAPED:
            return []
        case ast.Attribute(attr="Array" | "ndarray") | ast.Name(id="Array" | "ArrayLike"):
            return [ast.unparse(annotation)]
    return [name for child in ast.iter_child_nodes(annotation) for name in _bare(child)]


def _without_shapes(source: str) -> list[str]:
    """Returns a module's functions that have arrays without shapes, or lack types."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        arguments = [x for x in arguments if x is not None and x.arg not in ("self", "cls")]
        lacking = [x.arg for x in arguments if x.annotation is None and x.arg != "_"]
        if function.returns is None and function.name != "__init__":
            lacking.append("return")
        hints = [x.annotation for x in arguments if x.annotation] + [function.returns]
        bare = [name for hint in hints if hint for name in _bare(hint)]
        if lacking or bare:
            found.append(f"{function.name} (line {function.lineno}): {', '.join(lacking + bare)}")
    return found


def test_every_array_in_a_signature_has_a_shape():
    files = _files()
    assert len(files) > 30
    lacking = {file.name: _without_shapes(file.read_text()) for file in files}
    assert not {name: functions for name, functions in lacking.items() if functions}


@pytest.mark.parametrize(
    "signature",
    [
        "x: jax.Array",
        "x: tuple[jax.Array, int]",
        "x: Array | None = None",
        "*x: np.ndarray",
        "*, x",
        "x: Callable[[Float[Array, 'B']], jax.Array]",
    ],
)
def test_an_array_without_a_shape_is_found(signature):
    assert _without_shapes(f"class A:\n  def f(self, {signature}) -> None: ...")
    assert not _without_shapes("def f(x: Float[Array, 'B L'], key: PRNGKeyArray) -> None: ...")


def test_a_result_without_a_type_is_found():
    assert _without_shapes("def f(x: int): ...") == ["f (line 1): return"]
    assert not _without_shapes("class A:\n  def __init__(self, x: int): ...")


def test_all_modules_with_shapes_are_checked():
    for file in _files():
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        loader = importlib.import_module(name).__spec__.loader
        assert type(loader).__module__.startswith("jaxtyping"), name


def test_wrong_shapes_are_refused_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError, match="item"):
        dot_product(jnp.zeros((2, 4)), jnp.zeros((3, 5, 4)))
    with pytest.raises(jaxtyping.TypeCheckError, match="query"):
        dot_product([0.0, 0.0], jnp.zeros((5, 2)))  # not an array
    with pytest.raises(jaxtyping.TypeCheckError, match="token"):
        prepend_token(jnp.zeros(3), jnp.zeros((2, 5, 4)))
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        SASRec(num_users=2, width=4, dtype=jnp.float32).visible(jnp.zeros((2, 3)))  # not of bool


@pytest.mark.parametrize(
    "encoder",
    dict.fromkeys(
        [*USER_ENCODERS.values(), *FEATURE_HEADS.values(), IdEncoder, PixelEncoder, SemanticIds]
    ),
    ids=lambda encoder: encoder.__name__,
)
def test_the_width_of_what_an_encoder_returns_is_bound(encoder):
    for hint in get_args(inspect.signature(encoder.__call__).return_annotation):
        assert hint.dim_str.split()[-1].startswith("{")


@pytest.mark.parametrize("encoder", [SASRec, GRU4Rec, NextItNet, SRGNN, FM, DSSM])
def test_a_query_of_another_width_is_refused_at_its_encoder(encoder):
    model = encoder(num_users=2, width=8, dtype=jnp.float32)
    history = History(jnp.zeros((1, 3, 4)), item=jnp.ones((1, 3), int), user=jnp.ones(1, int))
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), history)


def _batch() -> Batch:
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    return Batch(
        items=Items(id=zeros(2, 7)),
        user=zeros(2, 3),
        history=zeros(2, 3, 5),
        positive=zeros(2, 3, 4),
        negative=zeros(2, 3, 4, 1),
        weight=zeros(2, 3, 4),
    )


_WRONG = {
    "user": ((6,), r"batch.user has shape \[6\], expected is \[G, B\]"),
    "history": ((2, 4, 5), r"batch.history has shape \[2, 4, 5\], .* with B = 3 as in batch.user"),
    "negative": ((2, 3, 5, 1), r"batch.negative .* \[G, B, T, K\] with T = 4 as in batch.positive"),
    "weight": ((2, 3), r"batch.weight has shape \[2, 3\], expected is \[G, B, T\]"),
    "time": ((2, 3, 4), r"batch.time .* with L = 5 as in batch.history"),
}


def test_a_batch_that_fits_passes():
    _batch().check()
    replace(_batch(), time=jnp.zeros((2, 3, 5))).check()


@pytest.mark.parametrize("field", _WRONG)
def test_a_batch_with_a_wrong_shape_is_refused(field):
    shape, message = _WRONG[field]
    with pytest.raises(ValueError, match=message):
        replace(_batch(), **{field: jnp.zeros(shape, jnp.int32)}).check()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (Items(id=jnp.zeros(7)), r"items.id has shape \[7\], expected is \[G, U\]"),
        (
            Items(id=jnp.zeros((2, 7)), image=jnp.zeros((2, 7, 8, 8, 4))),
            r"items.image has shape \[2, 7, 8, 8, 4\], expected is \[G, U, H, W, 3\]$",
        ),
        (
            Items(id=jnp.zeros((2, 7)), feature=jnp.zeros((2, 6, 8))),
            r"items.feature has shape \[2, 6, 8\], expected is \[G, U, ...\] with U = 7",
        ),
    ],
)
def test_items_with_a_wrong_shape_are_refused(items, message):
    model = Recommender(item_encoder=None, user_encoder=None)
    with pytest.raises(ValueError, match=message):
        model.encode_items(items)
    with pytest.raises(ValueError, match=message):
        model(replace(_batch(), items=items), train=True)


def test_a_history_with_a_wrong_shape_is_refused():
    history = History(jnp.zeros((3, 5, 8)), item=jnp.zeros((3, 4)), user=jnp.zeros(3))
    model = Recommender(item_encoder=None, user_encoder=None)
    with pytest.raises(ValueError, match=r"history.item has shape \[3, 4\], .* with L = 5 as in"):
        model.encode_users(history)


@pytest.mark.parametrize(
    ("query", "item", "message"),
    [
        ((2, 3, 1, 8), (2, 7, 8), r"query has shape \[2, 3, 1, 8\], .* with T = 4"),
        (
            (2, 3, 4, 8),
            (2, 6, 8),
            r"item has shape \[2, 6, 8\], .* \[G, U, E\] with U = 7",
        ),
        ((2, 3, 4, 8), (14, 8), r"item has shape \[14, 8\], expected is \[G, U, E\]$"),
    ],
)
def test_a_loss_refuses_what_does_not_fit_its_batch(query, item, message):
    loss = build_loss(ConfigDict({"name": "bpr", "epsilon": 0.0, "single_row": False}))
    assert loss(dot_product, jnp.zeros((2, 3, 4, 8)), jnp.zeros((2, 7, 8)), _batch()).shape == ()
    with pytest.raises(ValueError, match=message):
        loss(dot_product, jnp.zeros(query), jnp.zeros(item), _batch())
