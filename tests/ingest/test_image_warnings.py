"""Whole images are read whatever is in them beside pixels, and warnings name the image."""

import io
import warnings

import numpy as np
import pytest
from absl import logging
from PIL import Image, PngImagePlugin

from pixelrec_jax.data.images import decode
from pixelrec_jax.ingest import image_shards, image_warnings
from pixelrec_jax.ingest.sources.folder import FolderImages


def png(mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG", **options)
    return file.getvalue()


def texts(*lengths):
    info = PngImagePlugin.PngInfo()
    for number, length in enumerate(lengths):
        info.add_text(f"a{number}", "x" * length, zip=number % 2 == 0)
        info.add_itxt(f"b{number}", "y" * length, zip=number % 2 == 1)
    return info


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "RGBA"])
@pytest.mark.parametrize(
    "options",
    [{"icc_profile": b"\0" * 2_000_000}, {"pnginfo": texts(2_000_000, 9, 3_000_000)}],
    ids=["profile", "texts"],
)
def test_pixels_do_not_depend_on_what_is_beside_them(mode, options):
    np.testing.assert_array_equal(decode(png(mode, **options), 5), decode(png(mode), 5))


def test_a_damaged_image_stays_one():
    whole = png(icc_profile=b"\0" * 2_000_000)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(whole[:-40], 5)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(whole[: len(whole) // 2], 5)


def test_a_warning_names_the_first_image_and_how_many_follow(tmp_path, monkeypatch, capsys):
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: logged.append(text % values))
    palette = io.BytesIO()
    image = Image.new("P", (4, 4))
    image.putpalette(bytes(range(256)) * 3)
    image.save(palette, "PNG", transparency=bytes(range(256)))  # Pillow warns when it is converted
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(palette.getvalue())
    (tmp_path / "d.png").write_bytes(png())
    reasons = image_shards.write_shards(
        tmp_path / "out", FolderImages(tmp_path), list("abcd"), size=None
    )
    assert reasons == {}
    (line,) = logged
    assert line.startswith("image of item 'a' and 2 more: Palette images with Transparency")
    assert not capsys.readouterr().err


def test_warnings_are_as_they_were_afterwards():
    before = warnings.showwarning, list(warnings.filters)
    with image_warnings.collected():
        pass
    assert (warnings.showwarning, list(warnings.filters)) == before
