"""The package as others get it: what is in its wheel, and that it works outside the repository."""

import ast
import graphlib
import os
import pkgutil
import re
import sys
import tomllib
import zipfile

import jax
import numpy as np
import pytest

import pixelrec_jax
from pixelrec_jax.data.types import Items
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT, tiny_config

# Where the subpackages lie in the repository.
_FOLDERS = {
    "pixelrec_jax": "pixelrec_jax",
    "configs": "pixelrec_jax.configs",
    "launch": "pixelrec_jax.launch",
}


def _files():
    """Yields (package, file) for all files of the package."""
    for top, package in _FOLDERS.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.parent.relative_to(ROOT / top).parts
                yield ".".join((package, *inside)), path


def test_every_folder_with_code_is_listed_as_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    with_code = {package for package, path in _files() if path.suffix == ".py"}
    assert sorted(settings["packages"]) == sorted(with_code)


def test_the_wheel_holds_every_file_and_nothing_beside_the_package(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"{package.replace('.', '/')}/{path.name}" for package, path in _files()}


def _imports(paths):
    """(path, the first part of a name that it imports)."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                yield path, node.module.split(".")[0]


def test_the_package_imports_neither_tests_nor_benchmarks_and_these_no_tests():
    package = set(_imports(path for _, path in _files() if path.suffix == ".py"))
    assert "jax" in {name for _, name in package}
    assert not {(path, name) for path, name in package if name in ("benchmarks", "tests")}
    benchmarks = set(_imports((ROOT / "benchmarks").glob("*.py")))
    assert "pixelrec_jax" in {name for _, name in benchmarks}
    assert not {(path, name) for path, name in benchmarks if name == "tests"}


def _circle(arrows):
    """A circle of imports between folders, or modules at the top of the package; None without."""
    graph = {}
    for importing, imported in ((".".join(x.split(".")[:2]) for x in arrow) for arrow in arrows):
        if importing != imported:
            graph.setdefault(importing, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_imports_between_folders_run_one_way():
    """Those inside functions count as well: they show the same dependence."""
    modules = {
        package if path.stem == "__init__" else f"{package}.{path.stem}": path
        for package, path in _files()
        if path.suffix == ".py"
    }
    arrows = set()
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
                arrows |= {(module, name) for name in names if name in modules}
    assert ("pixelrec_jax.training.step", "pixelrec_jax.parallel.tables") in arrows
    assert _circle(arrows) is None
    assert _circle({*arrows, ("pixelrec_jax.parallel.tables", "pixelrec_jax.training.step")})


def _run(installed, folder, *argv):
    return subprocesses.run(argv, cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)})


def test_the_installed_package_works_in_any_folder(installed, tmp_path):
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "bin",
        "pixelrec_jax",
    }
    command = str(installed / "bin" / "pixelrec")
    for arguments in (
        ["--help"],
        ["toy", "--out=raw", "--users=40", "--items=100", "--image_size=16"],
        ["prepare", "--interactions=raw/interactions.csv", "--images=raw/images", "--out=data"],
        ["analyze", "data"],
    ):
        process = _run(installed, tmp_path, command, *arguments)
        assert process.returncode == 0, process.stderr
    program = "import pixelrec_jax; print(pixelrec_jax.__file__); "
    program += "print(pixelrec_jax.load_config('pixelrec:user=mf,dataset=toy').user.name)"
    process = _run(installed, tmp_path, sys.executable, "-c", program)
    assert process.stdout.split() == [f"{installed}/pixelrec_jax/__init__.py", "mf"]
    words = "--config=pixelrec:user=mf,item=id,dataset=toy"
    process = _run(installed, tmp_path, command, "train", words, "--workdir=run")
    assert process.stderr.startswith("error: 'data/toy' is not a prepared dataset")


def test_importing_the_package_is_quick():
    program = "import sys, pixelrec_jax; print(*sys.modules)"
    done = subprocesses.run([sys.executable, "-c", program], check=True)
    imported = set(done.stdout.split())
    assert "pixelrec_jax" in imported
    assert not {"jax", "numpy", "absl"} & imported


def test_public_names_are_documented_and_are_not_modules():
    modules = {module.name for module in pkgutil.iter_modules(pixelrec_jax.__path__)}
    modules |= {package.split(".")[1] for package in _FOLDERS.values() if "." in package}
    public = set(pixelrec_jax.__all__) - {"__version__"}
    assert not public & modules
    assert public
    for name in public:
        assert getattr(pixelrec_jax, name).__doc__
        # At the start of its line, or named as what a function returns.
        line = rf"^  {name}\(|returns a `{name}`"
        assert re.search(line, pixelrec_jax.__doc__, re.MULTILINE), name
        assert name in dir(pixelrec_jax)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = pixelrec_jax.trian


def test_a_run_is_trained_evaluated_and_loaded(toy_dataset, tmp_path):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    config.train.epochs = 1
    result = pixelrec_jax.train(config, tmp_path / "run")
    assert pixelrec_jax.evaluate(tmp_path / "run") == result
    run = pixelrec_jax.load_run(str(tmp_path / "run"))
    assert isinstance(run, pixelrec_jax.Run)
    assert run.step == result["best_step"]
    assert run.config.to_dict()["user"] == config.to_dict()["user"]
    assert run.dataset.num_users == 61  # and padding
    ids = np.arange(run.dataset.num_items, dtype=np.int32)[None]
    vectors = run.model.apply(run.variables, Items(id=ids), method="encode_items")
    assert vectors.shape == (1, run.dataset.num_items, config.width)
    assert (
        len({*map(float, jax.device_get(vectors[0, 1:, 0]))}) == run.dataset.num_items - 1
    )  # items differ
    elsewhere = toy_dataset.parent / "moved"
    elsewhere.symlink_to(toy_dataset)
    moved = pixelrec_jax.load_run(tmp_path / "run", dataset=elsewhere)
    assert moved.dataset.directory == elsewhere


def test_a_config_may_be_given_by_its_name(tmp_path):
    words = "user=sasrec,item=id,dataset=custom"
    with pytest.raises(UserError, match="'data/custom' is not a prepared dataset"):
        pixelrec_jax.train(f"pixelrec:{words}", tmp_path)
    shipped = pixelrec_jax.load_config(f"pixelrec:{words}")
    own = tmp_path / "own.py"
    own.write_text((ROOT / "configs" / "pixelrec.py").read_text())
    assert pixelrec_jax.load_config(f"{own}:{words}").to_dict() == shipped.to_dict()
    assert pixelrec_jax.load_config("pixelrec").user.name
