"""The files of cached activations: made once, complete or absent, and never taken for others."""

import errno
import json
import os
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.data import activations
from pixelrec_jax.data.activations import KEY, ActivationStore
from pixelrec_jax.data.types import PAD, Items
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.runs import run_folder
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import cached
from pixelrec_jax.training.cached import with_activations
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.frozen_blocks import FrozenBlocks
from pixelrec_jax.training.state import state_template
from tests.steps import draw_state
from tests.tiny import use_tiny_encoders
from tests.training.runs import cached_config


@pytest.fixture(autouse=True)
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)
    monkeypatch.setattr(activations, "_FILE_BYTES", 1 << 13)  # of 16 rows


def _experiment(toy_dataset, folder, **item):
    config = cached_config(toy_dataset, folder, **item)
    experiment = build_experiment(config, devices=jax.devices()[:1])
    return experiment, draw_state(experiment).variables


def _folder(root):
    (folder,) = activations.folders_in(root)
    return folder


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_padding_items_and_the_mask_item_have_rows(toy_dataset, tmp_path):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    store = with_activations(experiment, variables).activations
    encoder, last = experiment.model.item_encoder, experiment.interactions.num_items
    ids = np.array([PAD, 1, 50, last - 1, last], np.int32)
    items = Items(id=ids, image=experiment.store.load(ids))
    parts = {name: tree["item_encoder"] for name, tree in variables.items()}
    run = {"method": PixelEncoder.run_backbone}
    expected = encoder.clone(mask_item=last).apply(parts, items, encoder.boundary, **run)
    np.testing.assert_allclose(store.load(ids), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[0] - expected[-1]).max() > 0.1


def test_a_killed_run_continues_with_what_is_missing(toy_dataset, tmp_path, monkeypatch):
    experiment, variables = _experiment(toy_dataset, tmp_path / "whole")
    with_activations(experiment, variables)
    whole = _content(_folder(tmp_path / "whole"))
    assert len(whole) == 6  # files of at most 16 of 91 rows

    experiment, variables = _experiment(toy_dataset, tmp_path / "killed")
    write, written = activations.write, []

    def dying_write(folder, number, rows):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        write(folder, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(activations, "write", dying_write)
        with pytest.raises(KeyboardInterrupt):
            with_activations(experiment, variables)
    folder = _folder(tmp_path / "killed")
    assert len(_content(folder)) == 3
    written.clear()
    monkeypatch.setattr(activations, "write", lambda *a: written.append(a[1]) or write(*a))
    with_activations(experiment, variables)
    assert written == [3, 4, 5]
    assert _content(folder).keys() == whole.keys()  # names are digests of the content
    written.clear()
    with_activations(experiment, variables)
    assert written == []


def test_a_damaged_file_is_computed_again(toy_dataset, tmp_path, capsys):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    with_activations(experiment, variables)
    folder = _folder(tmp_path)
    before = _content(folder)
    cut, changed, *_ = sorted(folder.glob("*.npy"))
    cut.write_bytes(before[cut.name][:-8])
    changed.write_bytes(before[changed.name][:-1] + b"\x55")
    capsys.readouterr()
    with_activations(experiment, variables)
    said = capsys.readouterr().err
    assert said.count("is damaged; it is computed again") == 2
    assert _content(folder) == before


def test_activations_of_anything_else_are_not_taken(toy_dataset, tmp_path):
    """Weights, images, resolution, normalisation, boundary, precision, and the program itself."""
    experiment, variables = _experiment(toy_dataset, tmp_path)

    def key(experiment, variables):
        frozen = FrozenBlocks(experiment)
        return frozen.key(frozen.variables_in(variables))

    keys = [key(experiment, variables)]
    changed = jax.tree.map(lambda x: x + np.float32(1e-6), variables)
    keys.append(key(experiment, changed))
    store = experiment.store
    other_images = type("Images", (), {"fingerprint": "1" * 64, "load": store.load})()
    keys.append(key(replace(experiment, store=other_images), variables))
    for item in (
        {"normalisation": "imagenet"},
        {"trainable": "norm"},
        {"dtype": "bfloat16"},
        {"cache_dtype": "bfloat16"},
    ):
        keys.append(key(*_experiment(toy_dataset, tmp_path, **item)))
    names = {activations.folder_name(key) for key in keys}
    assert len(names) == len(keys)
    # What does not change them: the head, the task, what training does, other trained weights.
    same = jax.tree.map(np.copy, variables)
    same["params"]["item_encoder"]["head"]["kernel"] += 1
    same["params"]["item_encoder"]["backbone"]["block_1"]["query"]["kernel"] += 1
    assert key(experiment, same) == keys[0]
    config = cached_config(toy_dataset, tmp_path, "user=bert4rec,item=vit_toy", remat=True)
    other = build_experiment(config)
    assert key(other, variables) == keys[0]


def test_a_folder_of_others_is_refused_and_stays(toy_dataset, tmp_path):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    with_activations(experiment, variables)
    folder = _folder(tmp_path)
    content = json.loads((folder / KEY.name).read_text())
    (folder / KEY.name).write_text(json.dumps(content | {"weights": "0" * 64}))
    before = _content(folder)
    with pytest.raises(UserError, match="have another weights; remove the folder"):
        with_activations(experiment, variables)
    assert _content(folder) == before
    (folder / KEY.name).write_text(json.dumps(content))
    _, second, *_ = sorted(folder.glob("*.npy"))
    second.unlink()
    foreign = np.zeros((3, 2), np.float32)
    activations.write(folder, 1, foreign)
    with pytest.raises(UserError, match=r"holds float32\[3, 2\], expected float32\[16, 5, 16\]"):
        with_activations(experiment, variables)


def test_a_full_disk_is_one_line_and_loses_nothing(toy_dataset, tmp_path, monkeypatch):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    usage = activations.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(activations.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"do not fit in .* free"):
            with_activations(experiment, variables)
    assert activations.folders_in(tmp_path) == []
    save, saved = np.save, []

    def full(file, rows, **options):
        if len(saved) == 2:
            file.write(b"a part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(rows)
        save(file, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(activations.np, "save", full)
        with pytest.raises(UserError, match=r"No space .*stay"):
            with_activations(experiment, variables)
    folder = _folder(tmp_path)
    kept = _content(folder)
    assert len(kept) == 2
    assert {path.name for path in folder.iterdir()} == {*kept, KEY.name, ".lock"}
    with_activations(experiment, variables)
    assert kept.items() < _content(folder).items()


def test_a_second_run_waits_for_the_first(toy_dataset, tmp_path, capsys):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    frozen = FrozenBlocks(experiment)
    key = frozen.key(frozen.variables_in(variables))
    done = threading.Event()

    def run():
        with_activations(experiment, variables)
        done.set()

    second = threading.Thread(target=run)
    with storage.exclusive(tmp_path / activations.folder_name(key)):
        second.start()
        said = ""
        while "waiting for another run" not in said:
            said += capsys.readouterr().err
        assert not done.wait(0.3)
    second.join(60)
    assert done.is_set()


def test_a_file_that_changes_while_a_run_reads_it_ends_the_run(toy_dataset, tmp_path):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    reading = with_activations(experiment, variables)
    reading.check_files()
    path = sorted(_folder(tmp_path).glob("*.npy"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match="has other content since this run started"):
        reading.check_files()


def test_half_the_bytes_are_the_same_numbers_rounded(toy_dataset, tmp_path):
    experiments = [
        with_activations(*_experiment(toy_dataset, tmp_path, cache_dtype=dtype))
        for dtype in ("exact", "bfloat16")
    ]
    exact, half = (experiment.activations for experiment in experiments)
    ids = np.arange(experiments[0].interactions.num_items + 1)
    assert isinstance(half, ActivationStore)
    rounded = exact.load(ids).astype(jnp.bfloat16)
    np.testing.assert_array_equal(half.load(ids), rounded)


@pytest.mark.parametrize(
    ("item", "change", "message"),
    [
        ("vit_toy", {"trainable": "all"}, "trainable='all' trains the first block, stem; freeze"),
        (
            "efficientnet_lite0",
            {"frozen_in_train_mode": True},
            "frozen_in_train_mode=True lets stem use batch statistics or drop paths",
        ),
        (
            "swin_t",
            {"frozen_in_train_mode": True},
            "frozen_in_train_mode=True lets stage_0 use batch statistics or drop paths",
        ),
        ("vit_toy", {"source": "cache"}, "item.source='cache'; expected stream or cached"),
        ("vit_toy", {"cache_dtype": "int8"}, "cache_dtype='int8'; expected exact or bfloat16"),
    ],
)
def test_what_cannot_be_cached_is_one_line(toy_dataset, tmp_path, item, change, message):
    config = cached_config(toy_dataset, tmp_path, f"user=mf,item={item}", **change)
    with pytest.raises(UserError, match=message):
        build_experiment(config)


def test_a_url_is_not_a_folder_of_activations(toy_dataset, tmp_path):
    experiment, variables = _experiment(toy_dataset, "gs://bucket/cache")
    with pytest.raises(UserError, match="cache_dir=gs://bucket/cache is not on the local"):
        with_activations(experiment, variables)


def test_they_lie_in_the_dataset_or_else_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXELREC_CACHE", str(tmp_path / "cache"))
    users, dataset = tmp_path / "cache" / activations.FOLDER, tmp_path / "data"
    dataset.mkdir()
    assert activations.roots("", dataset)[-1] == dataset / activations.FOLDER
    with monkeypatch.context() as patch:
        patch.setattr(activations.os, "access", lambda path, mode: False)
        assert activations.roots("", dataset)[-1] == users
    (dataset / "origin.txt").write_text("gs://bucket/data")  # a copy
    assert activations.roots("", dataset) == [users]
    assert activations.roots(str(tmp_path / "x"), dataset) == [tmp_path / "x"]


def test_the_source_may_change_when_a_run_continues(toy_dataset, tmp_path):
    """The state and what a run is compared by are the same."""
    config = cached_config(toy_dataset, tmp_path / "cache")
    config.item.source = "stream"
    with run_folder.claim(tmp_path / "run", config):
        pass
    streaming = build_experiment(config)
    config.item.source = "cached"
    run_folder.check_same(tmp_path / "run", config)
    experiment = build_experiment(config)
    state = draw_state(experiment)
    reading = with_activations(experiment, state.variables)
    assert reading.data_fingerprint == streaming.data_fingerprint
    assert state_template(reading) == state_template(streaming)
    config.item.cache_dtype = "bfloat16"  # which would change the result
    with pytest.raises(UserError, match="cache_dtype='exact' there, 'bfloat16' given"):
        run_folder.check_same(tmp_path / "run", config)


@pytest.mark.parametrize("free", [1 << 40, 0])
def test_where_they_are_kept_is_chosen_by_arithmetic_and_said(
    toy_dataset, tmp_path, monkeypatch, capsys, free
):
    experiment, variables = _experiment(toy_dataset, tmp_path)
    monkeypatch.setattr(cached, "_free_on_devices", lambda mesh: free)
    monkeypatch.setattr(cached, "available_memory", lambda: free)
    reading = with_activations(experiment, variables)
    where = "on the devices" if free else "on the disk"
    assert f"kept {where}" in capsys.readouterr().err
    assert (reading.resident.activation is not None) == bool(free)
