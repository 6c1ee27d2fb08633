"""Images: exact pixels, what is refused, and reading from threads and other processes."""

import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pixelrec_jax.data import images
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.ingest import prepare as program
from pixelrec_jax.system.errors import UserError

ITEMS = 12


def noise(seed, width, height, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pillow(path, size):
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BILINEAR))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A CSV of one user and twelve items with noise images of various sizes and kinds."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    rows = ["item_id,user_id,timestamp"]
    for item in range(ITEMS):
        suffix = (".jpg", ".png", ".webp", ".jpeg")[item % 4]
        mode = "RGBA" if suffix == ".png" else "RGB"
        noise(item, 20 + item, 16, mode).save(folder / "images" / f"i{item}{suffix}")
        rows.append(f"i{item},u,{item}")
    (folder / "x.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module", params=["original", "resized"])
def prepared(request, source, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "out"
    size = 16 if request.param == "resized" else None
    program.prepare(source / "x.csv", source / "images", out, store=request.param, image_size=size)
    return out


@pytest.fixture
def expected(source):
    paths = {path.stem: path for path in (source / "images").iterdir()}
    return np.stack([pillow(paths[f"i{i}"], 16) for i in range(ITEMS)])


def test_load_is_bit_equal_to_pillow(prepared, expected):
    store = ImageStore(prepared, size=16)
    ids = np.array([3, 0, 1, 12, 13, 3, 99], np.int32)
    loaded = store.load(ids)
    assert loaded.dtype == np.uint8
    assert loaded.shape == (7, 16, 16, 3)
    zeros = np.zeros((16, 16, 3), np.uint8)
    wanted = [expected[2], zeros, expected[0], expected[11], zeros, expected[2], zeros]
    np.testing.assert_array_equal(loaded, wanted)
    assert store.num_items == ITEMS
    assert store.load(np.zeros(0, int)).shape == (0, 16, 16, 3)


def test_original_files_are_kept_as_they_are_and_serve_any_size(source, tmp_path):
    program.prepare(source / "x.csv", source / "images", tmp_path / "out")
    store = ImageStore(tmp_path / "out", size=7)
    np.testing.assert_array_equal(
        store.load(np.array([1]))[0], pillow(source / "images" / "i0.jpg", 7)
    )
    content = (tmp_path / "out" / "images" / "00000.array_record").read_bytes()
    assert (source / "images" / "i1.png").read_bytes() in content


def test_resized_images_serve_one_size_only(source, tmp_path):
    program.prepare(
        source / "x.csv", source / "images", tmp_path / "out", store="resized", image_size=16
    )
    with pytest.raises(UserError, match=r"resized to 16 x 16 pixels, but item.image_size=32"):
        ImageStore(tmp_path / "out", size=32)


def test_bad_arguments(prepared):
    with pytest.raises(UserError, match="the image size is 0; give 1 or more pixels"):
        ImageStore(prepared, size=0)
    with pytest.raises(UserError, match="is not a prepared dataset"):
        ImageStore(prepared.parent, size=16)
    store = ImageStore(prepared, size=16)
    for ids in (np.array([-1]), np.array([1.0]), np.array([[1]])):
        with pytest.raises(ValueError, match="expected item indices"):
            store.load(ids)


def test_threads_share_one_store(prepared, expected):
    store = ImageStore(prepared, size=16)

    def check(seed):
        ids = np.random.default_rng(seed).integers(1, ITEMS + 1, 20)
        return np.array_equal(store.load(ids), expected[ids - 1])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(100)))


def test_a_used_store_is_picklable_without_its_reader(prepared, expected):
    store = ImageStore(prepared, size=16)
    store.load(np.array([1]))
    again = pickle.loads(pickle.dumps(store))
    assert again.num_items == ITEMS
    np.testing.assert_array_equal(again.load(np.array([5]))[0], expected[4])


def test_spawned_process_reads_the_same(prepared, expected):
    store = ImageStore(prepared, size=16)
    store.load(np.array([1]))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loaded = pool.apply(store.load, (np.arange(1, ITEMS + 1),))
    np.testing.assert_array_equal(loaded, expected)


def test_a_flipped_bit_is_noticed(source, tmp_path):
    program.prepare(source / "x.csv", source / "images", tmp_path / "out")
    path = tmp_path / "out" / "images" / "00000.array_record"
    content = bytearray(path.read_bytes())
    middle = content.find((source / "images" / "i1.png").read_bytes()) + 100
    content[middle] ^= 1
    path.write_bytes(content)
    store = ImageStore(tmp_path / "out", size=16)
    store.load(np.array([1]))
    with pytest.raises(UserError, match=r"is damaged: images/00000.*hash mismatch"):
        store.load(np.array([2]))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_decode_converts_as_pillow_does(mode):
    file = encoded(noise(0, 9, 5, "RGB").convert(mode), "PNG")
    wanted = pillow(io.BytesIO(file), 6)
    np.testing.assert_array_equal(images.decode(file, 6), wanted)
    assert images.decode(file, None).shape == (5, 9, 3)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not a JPEG, PNG or WEBP image"),
        (encoded(noise(0, 9, 5), "GIF"), "not a JPEG, PNG or WEBP image"),
        (encoded(noise(0, 90, 50))[:-300], "cannot be decoded"),
        (encoded(noise(0, 90, 50), "PNG")[:-300], "cannot be decoded"),
        (encoded(noise(0, 90, 50), "WEBP")[:-300], "cannot be decoded"),
    ],
)
def test_decode_refuses(file, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(file, 4)


@pytest.mark.parametrize("limit", [80, 20])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decode_refuses_a_bomb_before_decoding(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match="too large"):
        images.decode(encoded(noise(0, 9, 10)), 4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_image_counts(kind):
    frames = [noise(seed, 9, 5) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(file).n_frames == 3
    np.testing.assert_array_equal(images.decode(file.getvalue(), None), frames[0])


def test_16_bit_grey_keeps_its_upper_bits():
    grey = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    decoded = images.decode(encoded(Image.fromarray(grey), "PNG"), None)
    np.testing.assert_array_equal(decoded, np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_cmyk_becomes_rgb():
    red = Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK")
    decoded = images.decode(encoded(red), None)
    np.testing.assert_allclose(decoded[0, 0], [250, 10, 10], atol=4)


def test_of_a_damaged_file_any_error_is_a_reason(monkeypatch):
    def fail(*_):
        raise AssertionError  # as Pillow does for some palettes

    monkeypatch.setattr(images, "_to_8_bits", fail)
    with pytest.raises(ValueError, match="cannot be decoded"):
        images.decode(encoded(noise(0, 9, 5)), 4)


def test_few_files_stay_open(prepared, monkeypatch):
    monkeypatch.setattr(images, "_MOST_OPEN", 2)
    store = ImageStore(prepared, size=16)
    for name in ("a", "b", "c"):
        (prepared / "images" / f"{name}.array_record").write_bytes(
            (prepared / "images" / "00000.array_record").read_bytes()
        )
        store._open(prepared / "images" / f"{name}.array_record")
        (prepared / "images" / f"{name}.array_record").unlink()
    assert [path.stem for path in store._readers] == ["b", "c"]
