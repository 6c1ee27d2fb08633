"""Where parameters live: rules, rows of tables, a very large model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.pipeline import item_batch
from pixelrec_jax.data.types import Batch
from pixelrec_jax.items import FEATURES, vision
from pixelrec_jax.launch.dryrun import programs
from pixelrec_jax.launch.dryrun.roofline import compile_and_count
from pixelrec_jax.parallel.sharding import (
    BATCH_SPEC,
    CATALOG_SPEC,
    TABLE_SPEC,
    build_mesh,
    infer_shardings,
)
from pixelrec_jax.parallel.tables import add_rows, take_rows
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.digest import digests
from pixelrec_jax.system.chips import CHIPS
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import count_parameters, state_template
from pixelrec_jax.training.train import make_train_step
from pixelrec_jax.users import USER_ENCODERS
from tests.tiny import (
    interactions_of,
    items_of,
    random_store,
    tiny_config,
)

USERS, ITEMS = 200_000, 96_282  # of Pixel200K
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture
def cube():
    return build_mesh(ConfigDict(CUBE))


# Rules of shardings.


def _shapes(user, item):
    """Variables of a model of the paper's size, as shapes."""
    config = load_config(f"pixelrec:user={user},item={item},dataset=pixel200k")
    store = random_store(config.item, num_items=2, size=config.item.get("image_size", 0))
    slot = jnp.zeros((1, 1, config.task.history_length), jnp.int32)
    batch = Batch(
        items=item_batch(np.zeros((1, 1), np.int32), store),
        user=slot[..., 0],
        history=slot,
        positive=slot[..., :1],
        negative=slot[..., :1, None],
        weight=jnp.zeros((1, 1, 1)),
    )
    model = build_recommender(config, num_items=100, num_users=6)
    return jax.eval_shape(lambda: dict(model.init(jax.random.key(0), batch, train=False)))


@pytest.mark.parametrize(
    ("user", "item"),
    [(user, items_of(user)[0]) for user in USER_ENCODERS]
    + [("sasrec", item) for item in (*FEATURES, *vision.VISION_ENCODERS)],
)
def test_the_rules_cover_every_parameter_and_split_what_is_large(user, item, cube):
    shapes = _shapes(user, item)
    shardings = flatten_dict(infer_shardings(shapes, cube))
    leaves = flatten_dict(shapes)
    assert set(shardings) == set(leaves)
    assert leaves or user == "visrank"  # which has nothing to train
    if item in ("clip_vit_b32", "resnet50", "swin_t"):
        assert any(leaf.size >= 1e6 and min(leaf.shape[-2:]) > 1 for leaf in leaves.values())
    for path, leaf in leaves.items():
        spec = shardings[path].spec
        assert len(spec) == len(leaf.shape)
        # Depthwise kernels, positions and running statistics remain; they are small.
        if leaf.size >= 1e6 and min(leaf.shape[-2:]) > 1:
            assert "fsdp" in jax.tree.leaves(tuple(spec)), (path, leaf.shape, spec)


@pytest.mark.parametrize(
    ("item", "names", "spec"),
    [
        ("clip_vit_b32", ("backbone", "block_0", "mlp_in", "kernel"), ("fsdp", "tensor")),
        ("clip_vit_b32", ("backbone", "block_0", "mlp_out", "kernel"), ("tensor", "fsdp")),
        ("swin_t", ("backbone", "stage_3", "layer_0", "attention", "query", "kernel"), None),
        ("beit_b16", ("backbone", "block_3", "attention", "out", "kernel"), ("tensor", "fsdp")),
        (
            "resnet50",
            ("backbone", "layer4", "unit_1", "conv_2", "conv", "kernel"),
            (None, None, "fsdp", "tensor"),
        ),
        (
            "resnet50",
            ("backbone", "layer4", "unit_1", "conv_3", "conv", "kernel"),
            ("tensor", "fsdp"),
        ),
        ("resnet50", ("backbone", "layer1", "unit_1", "conv_3", "conv", "kernel"), ("fsdp", None)),
    ],
)
def test_heads_hidden_units_and_wide_channels_are_split_over_tensor(item, names, spec, cube):
    shardings = infer_shardings(_shapes("sasrec", item), cube)["params"]["item_encoder"]
    assert flatten_dict(shardings)[names].spec == PartitionSpec(*(spec or ("fsdp", "tensor")))


def test_small_parameters_and_axes_that_do_not_divide_are_not_split(cube):
    tree = {"kernel": jnp.zeros((4, 6)), "layer_0": {"query": {"kernel": jnp.zeros((3, 6))}}}
    assert infer_shardings(tree, cube)["kernel"].spec == PartitionSpec("fsdp", None)
    assert infer_shardings(tree, cube, min_size=25)["kernel"].spec == PartitionSpec(None, None)
    query = infer_shardings({"x": tree}, cube, min_size=25)["x"]["layer_0"]["query"]["kernel"]
    assert query.spec == PartitionSpec(None, "tensor")


def test_a_parameter_without_a_rule_is_refused(cube):
    tree = {"other": {"embedding": jnp.zeros((2, 3))}}
    with pytest.raises(UserError, match=r"no sharding rule covers .*other/embedding \[2, 3\]; add"):
        infer_shardings(tree, cube)


# Rows of tables.

TABLE = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)


@pytest.mark.parametrize("rows", [TABLE_SPEC, CATALOG_SPEC])
@pytest.mark.parametrize("batch", [BATCH_SPEC, CATALOG_SPEC])
def test_rows_are_read_where_they_are(cube, rows, batch):
    ids = np.random.default_rng(1).integers(0, 48, (16, 5)).astype(np.int32)
    table = jax.device_put(TABLE, NamedSharding(cube, rows))
    take = jax.jit(partial(take_rows, mesh=cube, rows=rows, batch=batch))
    taken = take(table, jax.device_put(ids, NamedSharding(cube, batch)))
    assert taken.sharding.is_equivalent_to(NamedSharding(cube, batch), 3)
    np.testing.assert_array_equal(taken, TABLE[ids])


def test_rows_are_added_where_they_are(cube):
    ids = np.array([0, 47, 13, 48, 13], np.int32)  # 48 is past the end
    values = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    table = jax.device_put(TABLE, NamedSharding(cube, TABLE_SPEC))
    expected = TABLE.copy()
    np.add.at(expected, ids[[0, 1, 2, 4]], values[[0, 1, 2, 4]])
    actual = jax.jit(partial(add_rows, mesh=cube))(table, ids, values)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_tables_of_any_length_start_and_are_saved_alike_on_any_mesh(tmp_path):
    """101 items divide by nothing: rows that a mesh adds are zeros, and no other mesh sees them."""
    config = tiny_config("user=mf,item=id,dataset=toy")
    sequences = list(np.random.default_rng(0).integers(1, 101, (30, 5)))
    build_ = partial(build_experiment, interactions=interactions_of(sequences, 101))
    one = build_(config, devices=jax.devices()[:1])
    config.mesh.update({"data": 1, "fsdp": 4, "tensor": 2})
    eight = build_(config)
    assert count_parameters(one) == count_parameters(eight) == ((31 + 101) * 16,) * 2
    alone, state = init_state(one), init_state(eight)
    assert digests(alone) == digests(state)
    expected = alone.trainable["item_encoder"]["table"]
    table = state.trainable["item_encoder"]["table"]
    assert table.shape == (104, 16)
    assert {shard.data.shape for shard in table.addressable_shards} == {(13, 16)}
    np.testing.assert_array_equal(table[:101], expected)
    np.testing.assert_array_equal(table[101:], 0)
    with Checkpoints(tmp_path, metric="x") as checkpoints:
        checkpoints.save(1, state, {}, {"x": 1})
        checkpoints.wait()
        there = checkpoints.restore(1, state_template(one)).trainable["item_encoder"]["table"]
        np.testing.assert_array_equal(there, expected)
        back = checkpoints.restore(1, state_template(eight)).trainable["item_encoder"]["table"]
        np.testing.assert_array_equal(back, table)


def test_a_checkpoint_of_other_widths_is_refused(tmp_path):
    config = tiny_config("user=mf,item=id,dataset=toy")
    sequences = list(np.random.default_rng(0).integers(1, 9, (3, 5)))
    build_ = partial(build_experiment, interactions=interactions_of(sequences, 9))
    with Checkpoints(tmp_path, metric="x") as checkpoints:
        checkpoints.save(1, init_state(build_(config)), {}, {"x": 1})
        checkpoints.wait()
        config.width = 8
        with pytest.raises(UserError, match=r"table is \[9, 16\], expected \[9, 8\]"):
            checkpoints.restore(1, state_template(build_(config)))


# A model too large for one chip.


def test_mf_of_the_paper_is_split_over_eight_devices_without_allocating_it():
    """1.2 B parameters (Table 9): a device keeps an eighth of them and of their Adam moments."""
    config = load_config("pixelrec:user=mf,item=id,dataset=pixel200k").unlock()
    config.mesh.fsdp = 8
    sequences = np.random.default_rng(0).integers(1, ITEMS + 1, (USERS, 3))
    interactions = interactions_of(list(sequences), ITEMS + 1)
    experiment = build_experiment(config, interactions=interactions)
    parameters, trained = count_parameters(experiment)
    assert parameters == trained
    assert round(parameters / 1e6) == 1214  # the paper does not count the padding user
    state = state_template(experiment)
    sharding = NamedSharding(experiment.mesh, BATCH_SPEC)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), experiment.batches[0]
    )
    step = make_train_step(experiment).lower(state, batch, experiment.resident).compile()
    memory = step.memory_analysis()
    tables = 3 * 4 * parameters / 8  # with both moments, in bytes
    assert tables < memory.argument_size_in_bytes < 1.01 * tables
    # Tables are updated in place, and a device never holds a whole table.
    assert memory.alias_size_in_bytes > 0.99 * tables
    assert memory.temp_size_in_bytes < tables / 2


@pytest.fixture
def halves(monkeypatch):
    """A function that returns an experiment on two devices, its state, and a program counter."""
    counts = {"users": 4_000, "items": 1_000, "interactions": 60_000}
    monkeypatch.setitem(programs.COUNTS, "pixel200k", counts)
    pod = programs.Pod(CHIPS["v5e"], jax.devices()[:2], slices=1)

    def make(item, **options):
        words = f"user=sasrec,item={item},dataset=pixel200k"
        config = load_config(f"pixelrec:{words}")
        config.update_from_flattened_dict({"mesh.fsdp": 2, **options})
        experiment = programs.experiment(config, pod, examples_per_chip=1)
        count = partial(compile_and_count, chip=pod.chip, coordinates=[(0,), (1,)])
        return experiment, state_template(experiment), count

    return make


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_training_sends_weights_not_activations(halves):
    """100 MiB of weights, and a batch so small that XLA would rather move its activations."""
    experiment, state, count = halves("vit_s16")
    cost = count(programs.lower_train_step(experiment, state))
    # Half of the weights are gathered, gradients are summed.
    assert sum(cost.sent.values()) <= 1.5 * _bytes(state.params)


def test_encoding_sends_weights_not_activations(halves):
    experiment, state, count = halves("resnet50", **{"eval.encode_batch_size": 16})
    encode, _ = experiment.evaluator.lower(state.variables)
    cost = count(encode)
    assert set(cost.sent) == {"all-gather"}
    assert cost.sent["all-gather"] <= 0.5 * _bytes(state.params)
