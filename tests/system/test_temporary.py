"""Writing follows no links that wait in a folder, and what a killed process leaves is removed."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from pixelrec_jax.ingest import prepare, toy
from pixelrec_jax.ingest.image_shards import write_shards
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.system import files, storage, temporary
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture


@pytest.fixture
def treasure(tmp_path):
    """A file that nobody may change, outside of the folder where all is written."""
    path = tmp_path / "treasure"
    path.write_bytes(b"mine")
    yield path
    assert path.read_bytes() == b"mine"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_a_link_under_an_old_temporary_name_is_not_followed(folder, treasure):
    for name in ("x.json", "x.json.tmp", "x.json.part"):
        (folder / name).symlink_to(treasure)
    files.write_json(folder / "x.json", [1])
    assert files.read_text(folder / "x.json") == "[\n  1\n]\n"
    assert not (folder / "x.json").is_symlink()


def test_temporary_names_cannot_be_guessed(folder):
    names = []
    for _ in range(2):
        with files.replaced_file(folder / "x") as path:
            names.append(path.name)
            assert path.exists()  # so that nothing else can get this name before it is opened
            path.write_text("")
    assert len(set(names)) == 2
    assert os.listdir(folder) == ["x"]


def test_files_have_the_mode_that_the_user_wants(folder):
    before = os.umask(0o027)
    files.write_json(folder / "x", [])
    os.umask(before)
    assert (folder / "x").stat().st_mode & 0o777 == 0o640


def _lock(folder):
    with files.locked(folder, option="out", busy="in use"):
        pass


def _exclusive(folder):
    with storage.exclusive(folder):
        pass


@pytest.mark.parametrize("lock", [_lock, _exclusive])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "hard link"])
def test_a_lock_changes_nothing_and_waits_for_nothing(folder, treasure, lock, kind):
    place = folder / files.LOCK
    if kind == "hard link":
        place.hardlink_to(treasure)
        lock(folder)
        return
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(treasure if kind == "link" else folder / "none")
    with pytest.raises(UserError, match="cannot be written"):
        lock(folder)
    assert not (folder / "none").exists()


def killed(code, *arguments):
    """Runs Python code that says when it is in the middle of its work, and is killed then."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(folder, treasure):
    code = """
        import sys, time
        from pathlib import Path
        from pixelrec_jax.system import files
        with files.replaced_file(Path(sys.argv[1])) as path:
            path.write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    killed(code, folder / "x")
    (left,) = folder.iterdir()
    (folder / f".{'0' * 16}.tmp").symlink_to(treasure)
    (folder / "other.tmp").write_text("not ours")
    with files.replaced_file(folder / "y") as used:
        temporary.remove_leftovers(folder)
        assert not left.exists()
        assert used.exists()
    assert {path.name for path in folder.iterdir()} == {"y", "other.tmp", f".{'0' * 16}.tmp"}


def test_after_a_kill_the_toy_is_made_again_in_the_same_place(tmp_path):
    code = """
        import sys, time
        from pixelrec_jax.ingest import toy
        def draw(*_):
            print("ready", flush=True)
            time.sleep(60)
        toy.draw_covers = draw
        toy.generate(sys.argv[1], users=5, items=100, image_size=16)
    """
    killed(code, tmp_path / "toy")
    assert os.listdir(tmp_path) == ["toy.partial"]
    toy.generate(tmp_path / "toy", users=5, items=100, image_size=16)
    assert os.listdir(tmp_path) == ["toy"]
    assert sorted(os.listdir(tmp_path / "toy")) == ["images", "interactions.csv", "items.csv"]


def test_preparation_follows_no_links_of_a_folder_of_unfinished_work(tmp_path, folder, treasure):
    csv = tmp_path / "x.csv"
    csv.write_text("item_id,user_id,timestamp\n" + "".join(f"i,u,{k}\n" for k in range(3)))
    images = tmp_path / "images"
    images.mkdir()
    (images / "i.png").write_bytes(picture(0)[0])
    (folder / "mine").write_text("")
    work = tmp_path / "out.partial"
    work.symlink_to(folder)
    (folder / files.LOCK).touch()
    with pytest.raises(UserError, match="holds something else"):
        prepare.prepare(csv, images, tmp_path / "out")
    work.unlink()
    work.mkdir()
    (work / files.LOCK).touch()
    (work / "images").symlink_to(folder)  # whose files are not ours to remove
    for name in ("items.npy", "manifest.json", "user_ids.arrow"):
        (work / name).symlink_to(treasure)
    prepare.prepare(csv, images, tmp_path / "out")
    assert (folder / "mine").exists()
    assert not (tmp_path / "out" / "images").is_symlink()


def test_image_shards_replace_links(tmp_path, folder, treasure):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "i.png").write_bytes(picture(0)[0])
    (folder / "00000.array_record").symlink_to(treasure)
    write_shards(folder, FolderImages(tmp_path / "images"), ["i"], size=None)
    assert not (folder / "00000.array_record").is_symlink()
