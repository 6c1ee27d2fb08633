"""The mapping of weights: complete, both ways, and interpolated to another resolution."""

import itertools
import re
import tracemalloc
from dataclasses import replace

import ml_dtypes  # noqa: F401 (makes "bfloat16" the name of a type)
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.mapping import (
    Rule,
    WeightMapping,
    batch_norm,
    linear,
    read_weights,
    write_weights,
)
from pixelrec_jax.weights.resize import resize_grid
from pixelrec_jax.weights.transforms import (
    BATCHED_POSITION,
    CONV,
    LINEAR,
    PATCHES,
    POINTWISE,
    POSITION,
    RELATIVE,
    TOKEN,
)

PORT = WeightMapping(
    "huggingface",
    rules=(
        Rule("patch.weight", "stem/patch/kernel", PATCHES),
        Rule("cls", "stem/token", TOKEN),
        Rule("position", "stem/position", BATCHED_POSITION),
        *linear("layers.{n}.fc", "block_{n}/fc"),
        Rule("layers.{n}.qk.weight", ("block_{n}/query", "block_{n}/key")),
        Rule("layers.{n}.conv.weight", "block_{n}/conv", CONV),
        Rule("layers.{n}.point.weight", "block_{n}/point", POINTWISE),
        *batch_norm("layers.{n}.bn", "block_{n}/bn"),
    ),
    prefixes=("model.",),
    ignored=(r"(model\.)?pooler\..*",),
)


def _layer(n):
    rng = np.random.default_rng(n)
    shapes = {
        "fc.weight": (5, 4),
        "fc.bias": (5,),
        "qk.weight": (6, 4),
        "conv.weight": (2, 3, 3, 3),
        "point.weight": (2, 3, 1, 1),
        **{f"bn.{x}": (2,) for x in ("weight", "bias", "running_mean", "running_var")},
    }
    return {
        f"layers.{n}.{name}": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _source():
    rng = np.random.default_rng(9)
    return {
        "patch.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "cls": rng.normal(size=(1, 1, 4)).astype(np.float32),
        "position": rng.normal(size=(1, 5, 4)).astype(np.float32),
        **_layer(0),
        **_layer(1),
    }


def _template():
    block = {
        "fc": {"kernel": (4, 5), "bias": (5,)},
        "query": (3, 4),
        "key": (3, 4),
        "conv": (3, 3, 3, 2),
        "point": (3, 2),
        "bn": {"scale": (2,), "bias": (2,), "mean": (2,), "var": (2,)},
    }
    stem = {"patch": {"kernel": (12, 4)}, "token": (4,), "position": (5, 4)}

    def shapes(tree):
        if isinstance(tree, dict):
            return {name: shapes(leaf) for name, leaf in tree.items()}
        return np.empty(tree, np.float32)

    return shapes({"stem": stem, "block_0": block, "block_1": block})


def _read(source, template=None, **options):
    return read_weights(source, (PORT,), template or _template(), origin="this file", **options)


def test_every_tensor_comes_back_under_its_name():
    source = _source()
    tree = _read(source)
    assert flatten_dict(tree).keys() == flatten_dict(_template()).keys()
    written = write_weights(tree, PORT)
    assert written.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_transforms_are_those_of_the_layers():
    tree, source = _read(_source()), _source()
    np.testing.assert_array_equal(tree["block_1"]["fc"]["kernel"], source["layers.1.fc.weight"].T)
    np.testing.assert_array_equal(tree["block_0"]["key"], source["layers.0.qk.weight"][3:])
    image = np.random.default_rng(0).normal(size=(1, 3, 2, 2)).astype(np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(image), torch.from_numpy(source["patch.weight"])
    )
    ours = image.transpose(0, 2, 3, 1).reshape(1, -1) @ tree["stem"]["patch"]["kernel"]
    np.testing.assert_allclose(ours, theirs[..., 0, 0], rtol=1e-5)


def test_prefixed_and_ignored_names():
    source = {f"model.{name}": tensor for name, tensor in _source().items()}
    source["model.pooler.weight"] = np.zeros(3)
    source["pooler.bias"] = np.zeros(3)
    np.testing.assert_array_equal(_read(source)["stem"]["token"], source["model.cls"][0, 0])


def test_the_port_that_knows_most_names_is_used():
    other = WeightMapping("openai", rules=(Rule("layers.{n}.fc.bias", "block_{n}/elsewhere"),))
    tree = read_weights(_source(), (other, PORT), _template(), origin="this file")
    assert "elsewhere" not in tree["block_0"]


def test_blocks_that_a_pooling_leaves_out_may_be_missing():
    template = _template()
    del template["block_1"]
    with pytest.raises(UserError, match="10 tensors for what the model lacks"):
        _read(_source(), template)
    assert set(_read(_source(), template, optional=("block_1",))) == {"stem", "block_0"}


def test_a_checkpoint_of_another_architecture_is_one_error_that_lists_all():
    source = _source()
    source["something.else"] = np.zeros(3)
    source["layers.1.fc.weight"] = source["layers.1.fc.weight"][:3]
    source["layers.1.bn.strange"] = source["layers.0.bn.strange"] = np.zeros(2)
    source |= {name.replace("layers.0", "layers.2"): x for name, x in _layer(0).items()}
    del source["cls"]
    with pytest.raises(UserError) as caught:
        _read(source)
    message = str(caught.value)
    assert message.startswith(
        "this file does not fit the model: 1 tensor of another shape, 3 tensors unknown, "
        "10 tensors for what the model lacks, 1 parameter unfilled (give weights of its "
    )
    assert "tensors unknown: something.else (3,), layers.*.bn.strange (2 times)" in message
    assert "layers.1.fc.weight to block_1/fc/kernel of (4, 3) instead of (4, 5)" in message
    assert "layers.2.fc.weight to block_2/fc/kernel" in message
    assert message.endswith("parameter unfilled: stem/token (4,)")
    assert "\n" not in message


def test_the_error_of_another_architecture_is_short_and_leaves_nothing_out():
    """Tensors of one kind are one entry, whatever their shapes."""
    source = {
        f"{part}.{block}.{unit}.{name}{n}.{leaf}": np.zeros((block + 1, unit + 1, n + 1))
        for part in ("down", "up")
        for block in range(4)
        for unit in range(9)
        for name in ("conv", "norm")
        for n in range(3)
        for leaf in ("weight", "bias")
    }
    with pytest.raises(UserError) as caught:
        _read(source)
    message = str(caught.value)
    assert "864 tensors unknown, 23 parameters unfilled" in message
    assert len(message) < 800
    for names in (source, map("/".join, flatten_dict(_template()))):
        for name in names:
            assert re.sub(r"\d+", "*", name) in message or name in message


def test_what_one_tensor_fills_already_is_named():
    source = _source()
    source["model.cls"] = source["cls"]
    with pytest.raises(UserError, match=r"1 tensor for what another one fills .* model\.cls to"):
        _read(source)


def test_tensors_of_the_wrong_dimension_are_named_and_not_turned():
    source = _source()
    for name in (
        "patch.weight",
        "cls",
        "position",
        "layers.0.conv.weight",
        "layers.0.point.weight",
    ):
        with pytest.raises(UserError, match=name.replace(".", r"\.") + " to"):
            _read({**source, name: np.zeros((2, 2, 2, 2, 2))})


TRANSFORMS = {
    PATCHES: (12, 4),
    CONV: (2, 2, 3, 4),
    LINEAR: (5, 4),
    POINTWISE: (3, 4),
    TOKEN: (4,),
    POSITION: (5, 4),
    BATCHED_POSITION: (5, 4),
    RELATIVE: (12, 4),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_shape_of_a_file_breaks_a_transform(transform):
    """Whatever does not fit is reported; zeros and one axis too many or too few are the worst."""
    mapping = WeightMapping(
        "huggingface", (Rule("x", "x", transform), Rule("y", ("a", "b"), transform))
    )
    shape = TRANSFORMS[transform]
    template = {name: np.empty(shape) for name in "xab"}
    for axes in range(6):
        for other in itertools.product([0, 1, 2, 3, 10, 12], repeat=axes):
            array = np.zeros(other, np.float16)  # cannot fit both
            with pytest.raises(UserError, match="of another shape"):
                read_weights({"x": array, "y": array}, (mapping,), template, origin="this file")


def test_only_what_fits_is_made_float32():
    """A file's shape may claim a thousand times the memory of its numbers."""
    huge = np.broadcast_to(np.float16(0), (2**17, 2**13))
    tracemalloc.start()
    with pytest.raises(UserError, match="of another shape"):
        _read({**_source(), "layers.0.fc.weight": huge})
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "int32"])
def test_parameters_are_float32(dtype):
    source = {name: tensor.astype(dtype) for name, tensor in _source().items()}
    source["position"] = np.arange(40).reshape(1, 10, 4).astype(dtype)  # is interpolated
    tree = flatten_dict(_read(source))
    assert {x.dtype for x in tree.values()} == {np.dtype("float32")}


def test_halves_are_interpolated_in_full_precision():
    half = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16)
    ours = POSITION.read(half, (5, 4))
    np.testing.assert_array_equal(ours, POSITION.read(half.astype(np.float32), (5, 4)))


def test_a_prefix_is_written_before_every_name():
    mapping = replace(PORT, written_prefix="model.")
    source = _source()
    written = write_weights(_read(source), mapping)
    assert written.keys() == {f"model.{name}" for name in source}
    assert _read(written).keys() == _template().keys()


def test_a_parameter_without_a_name_cannot_be_written():
    with pytest.raises(UserError, match=r"cannot write huggingface names: .*: block_0/new \(3,\)"):
        write_weights({"block_0": {"new": np.zeros(3)}}, PORT)


@pytest.mark.parametrize(("old", "new"), [(7, 14), (14, 7), (3, 5)])
def test_positions_are_interpolated_as_pytorch_does(old, new):
    x = np.random.default_rng(0).normal(size=(old * old, 6)).astype(np.float32)
    grid = torch.from_numpy(x.T.reshape(1, 6, old, old).copy())
    theirs = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    theirs = theirs.numpy().reshape(6, -1).T
    np.testing.assert_allclose(resize_grid(x, new * new), theirs, atol=1e-5)
    around = np.concatenate([x[:1], x, x[:2]])
    resized = resize_grid(around, new * new + 3, before=1, after=2)
    np.testing.assert_allclose(resized[1:-2], theirs, atol=1e-5)
    np.testing.assert_array_equal(resized[[0, -2, -1]], x[[0, 0, 1]])
    class_first = np.concatenate([x[:1], x])
    for transform, source in ((POSITION, class_first), (BATCHED_POSITION, class_first[None])):
        read = transform.read(source, (new * new + 1, 6))
        np.testing.assert_allclose(read[1:], theirs, atol=1e-5)


def test_a_grid_that_is_no_square_is_left_as_it_is():
    x = np.zeros((7, 2), np.float32)
    assert resize_grid(x, 9) is x
    assert resize_grid(x[:4], 7).shape == (4, 2)
