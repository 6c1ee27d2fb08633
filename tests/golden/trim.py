"""Writes the golden files of the tests from the reference's complete ones.

python tests/golden/trim.py FOLDER SASRec MOSASRec

Nothing is rounded: images become uint8, from which the normalised floats are recovered bit for bit
(checked here) and are kept once for all pixel models; a batch of images becomes the ids of its
images; frozen tensors are kept once, since a step does not change them (checked here); scores are
kept for the first users only; sequences are kept in two files, since models share them. VBPR's two
tables of users are joined, and ACF's table of items, which has two names, is kept under one.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
USERS_WITH_SCORES = 16  # the top 10 and the metrics cover all users
WITH_DATA = ("SASRec", "MOSASRec")  # the sequences of all models on ids, and of all on images


def trim(source: Path) -> None:
    """Writes the trimmed copy of one golden file beside this script."""
    golden = dict(np.load(source, allow_pickle=False))
    for prefix in ("param0/", "param1/", "grad/"):
        if f"{prefix}user_modal_embedding.weight" in golden:
            parts = [
                golden.pop(f"{prefix}user_{part}_embedding.weight") for part in ("id", "modal")
            ]
            golden[f"{prefix}user_embedding.weight"] = np.concatenate(parts, axis=1)
        second_name = golden.pop(f"{prefix}user_model.profile_embedding.weight", None)
        assert second_name is None or np.array_equal(
            second_name, golden[f"{prefix}item_model.weight"]
        )
    for name in [n for n in golden if n.startswith("param1/")]:
        initial = golden["param0/" + name.removeprefix("param1/")]
        if np.array_equal(golden[name], initial):
            del golden[name]
    if "scores" in golden:
        golden["scores"] = golden["scores"][:USERS_WITH_SCORES]
    if "eval_item_images" in golden:
        images = golden.pop("eval_item_images")
        if (images[-1] == 1).all():  # of a masked item, which uint8 need not say
            images = images[:-1]
        pixels = np.round((images * 0.5 + 0.5) * 255).astype(np.uint8)
        recovered = (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(
            0.5
        )
        assert np.array_equal(recovered[1:], images[1:])
        assert not images[0].any()  # padding, which uint8 cannot say
        pixels = pixels.transpose(0, 2, 3, 1)
        shared = HERE / "images.npy"
        if shared.exists():
            assert np.array_equal(np.load(shared)[1:], pixels[1:])
        np.save(shared, pixels)
        index = {image.tobytes(): n for n, image in enumerate(images)}
        index[np.ones_like(images[0]).tobytes()] = len(images)  # of a masked item
        for name in [n for n in golden if n.startswith("batch") and golden[n].ndim >= 4]:
            flat = golden[name].reshape(-1, *images.shape[1:])
            ids = [index[image.tobytes()] for image in flat]
            golden[name] = np.reshape(ids, golden[name].shape[:-3]).astype(np.int32)
    if source.stem not in WITH_DATA:
        golden = {name: x for name, x in golden.items() if not name.startswith("data/")}
    np.savez_compressed(HERE / source.name, **golden)


if __name__ == "__main__":
    folder, *models = sys.argv[1:]
    for model in models:
        trim(Path(folder) / f"{model}.npz")
