"""Cached activations are listed and removed by their names."""

import sys

import numpy as np
import pytest

from pixelrec_jax.data import activations
from pixelrec_jax.programs.cache import act
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT


def _make(root, layer):
    key = dict.fromkeys(("images", "weights", "program"), "0" * 64)
    key |= {"encoder": "vit_toy", "layer": layer, "normalisation": "half", "computed": "float32"}
    key |= {"image_size": 16, "stored": "float32", "shape": [3, 2]}
    folder = root / activations.folder_name(key)
    activations.create(folder, key, rows=3)
    return folder


def test_activations_are_listed_and_removed(tmp_path):
    root = tmp_path / "activations"
    assert list(act(["list"], [root])) == [f"no activations in {root}"]
    whole, begun = _make(root, "block_0"), _make(root, "block_1")
    activations.write(whole, 0, np.zeros((3, 2), np.float32))
    first, second = act(["list"], [tmp_path / "nowhere", root])
    assert first.startswith(f"{whole.name}  0.00 GB in {root}, complete: activations of vit_toy")
    assert "after block_0, 3 items of 2 float32" in first
    assert second.startswith(f"{begun.name}  0.00 GB in {root}, 0 of 1 files")
    assert list(act(["remove", whole.name], [root])) == [f"removed {whole}"]
    assert activations.folders_in(root) == [begun]
    (begun / activations.KEY.name).write_text("{}")
    (line,) = act(["list"], [root])
    assert "damaged" in line
    assert list(act(["remove", begun.name], [root])) == [f"removed {begun}"]
    command = [sys.executable, "-m", "pixelrec_jax", "cache", "list", f"--cache_dir={root}"]
    assert subprocesses.run(command, cwd=ROOT).stdout == f"no activations in {root}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shrink"], "unknown 'shrink'"),
        (["remove"], "KEY is missing"),
        (["remove", "vit"], "there are no activations 'vit'"),
        (["list", "vit"], "unexpected argument 'vit'"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        list(act(words, [tmp_path]))
