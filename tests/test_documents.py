"""Every JSON file of the program: damage of any kind is one line that names the file."""

import importlib
import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import pixelrec_jax
from pixelrec_jax.data import activations, features
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import download, image_shards
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.runs import kept, report, run_folder, writers
from pixelrec_jax.runs.machine import RUN
from pixelrec_jax.runs.run_folder import CONFIG, RECORD
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.schema import Document
from pixelrec_jax.training import train
from tests.described import made_from
from tests.training.runs import run_config
from tests.variants import variants

METADATA = kept._DOCUMENT
_PACKAGE = Path(pixelrec_jax.__file__).parent


def documents() -> dict[str, Document]:
    """All documents that the package declares, by module and name."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        if " = Document(" in path.read_text():
            place = path.relative_to(_PACKAGE).with_suffix("").as_posix().replace("/", ".")
            for name, value in vars(importlib.import_module(f"pixelrec_jax.{place}")).items():
                if isinstance(value, Document) and value not in found.values():
                    found[f"{place}.{name}"] = value
    return found


DOCUMENTS = documents()


@pytest.fixture(scope="session")
def folder(toy_dataset, tmp_path_factory) -> Path:
    """A folder with one example of every file, written by the program."""
    folder = tmp_path_factory.mktemp("documents")
    run = folder / "run"
    train.train_and_evaluate(run_config("user=mf,item=id,dataset=toy", toy_dataset, epochs=1), run)
    writers._keep_id(run, "wandb", "a1")
    metadata = kept.build_metadata({"next_batch": 3}, {"ndcg@10": 0.5}, {"step": "0" * 16})
    METADATA.write(run / METADATA.name, metadata)
    shutil.copytree(toy_dataset, folder / "data")
    dataset = load_interactions(folder / "data")
    np.save(folder / "data" / "features.npy", np.zeros((dataset.num_items, 3), np.float32))
    digest = features.item_ids_digest(dataset)
    features.PROVENANCE.write(folder / "data" / "features.json", made_from(digest))
    key = dict.fromkeys(("images", "weights", "program"), "0" * 64)
    key |= dict.fromkeys(("encoder", "layer", "normalisation", "computed"), "a")
    key |= {"image_size": 8, "stored": "float32", "shape": [3, 2]}
    activations.create(folder / "activations", key, rows=3)
    pictures = FolderImages(toy_dataset.parent / "raw" / "images")
    image_shards.write_shards(folder / "shards", pictures, sorted(pictures.ids)[:3], size=None)
    file = {"drive_id": "a", "bytes": 1, "sha256": "0" * 64}
    download.DOWNLOADS.write(folder / download.MANIFEST, {"x": file})
    return folder


def _open_features(path: Path) -> None:
    features.FeatureStore(path.with_suffix(".npy"), load_interactions(path.parent))


def _open_log(path: Path) -> None:
    with run_folder.MetricsLog(path.parent, continue_from=1):
        pass


READERS = {
    "manifest.json": lambda path: load_interactions(path.parent),
    "features.json": _open_features,
    "*.array_record.json": lambda path: image_shards.digests(path.parent),
    "download.json": download._read_manifest,
    "key.json": activations.KEY.read,
    "config.json": lambda path: run_folder.read_config(path.parent),
    "metrics.jsonl": _open_log,
    "result.json": lambda path: report.read_result(path.parent),
    "run.json": RUN.read,
    "trackers.json": lambda path: writers._read_ids(path.parent),
    METADATA.name: lambda path: METADATA.check(json.loads(path.read_text()), path),
}


def _one(folder: Path, document: Document) -> Path:
    (path,) = (
        path for path in folder.rglob(document.name) if path.parent.parent.name != "checkpoints"
    )
    return path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_variant_with_one_fault_is_one_line_that_names_the_file(folder, tmp_path, name):
    document = DOCUMENTS[name]
    original = _one(folder, document)
    shutil.copytree(original.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("check*"))
    path, read = tmp_path / "copy" / original.name, READERS[document.name]
    text = path.read_bytes()
    line = text.splitlines()[0] if document is RECORD else text
    read(path)
    count = 0
    for fault, variant in variants(document, json.loads(line)):
        if document is METADATA and not _is_json(variant):  # orbax reads that file
            continue
        path.write_bytes(variant + b"\n" if document is RECORD else variant)
        _refused(path, read, fault)
        count += 1
    assert count > 10
    path.unlink()
    path.mkdir()
    if document is not METADATA:
        _refused(path, read, "a folder")


def test_every_wrong_value_of_a_config_is_one_line(folder, tmp_path):
    content = json.loads((folder / "run" / CONFIG.name).read_text())
    path = tmp_path / CONFIG.name
    places = [(key,) for key in content]
    places += [(key, k) for key, keys in content.items() if isinstance(keys, dict) for k in keys]
    for place in places:
        for value in ("absent", None, True, -7, 1.5, "\x1b", [[]], {}, {"x": 1}):
            changed = json.loads(json.dumps(content))
            *outer, key = place
            section = changed[outer[0]] if outer else changed
            if value == "absent":
                del section[key]
            else:
                section[key] = value
            path.write_text(json.dumps(changed))
            if value == "absent" or isinstance(value, dict | list):
                _refused(
                    path, lambda path: run_folder.read_config(path.parent), f"{place}, {value}"
                )
            else:  # another value may be right
                with suppress(UserError):
                    run_folder.read_config(tmp_path)


def _refused(path: Path, read, fault: str) -> None:
    message = ""
    try:
        read(path)
    except UserError as error:
        message = str(error)
    assert path.name in message, f"{fault}: {message}"
    assert message.isprintable(), fault


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
