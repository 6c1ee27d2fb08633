"""Lists or removes cached activations, which runs with item.source=cached make.

pixelrec cache list [--data=data/custom] [--cache_dir=DIR]
pixelrec cache remove KEY [KEY ...] [--data=data/custom] [--cache_dir=DIR]

The folders are that in the dataset and that in the user's cache, or --cache_dir. A KEY is a name
that the list shows. A run that still reads what is removed ends at its next checkpoint, with one
line; started again, it makes the activations again.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest


def _define_flags() -> None:
    program.define_path("data", "", "folder of a prepared dataset, to see activations in it")
    program.define_path("cache_dir", "", "as item.cache_dir")


def main(argv: Sequence[str]) -> None:
    """Does what the first argument says."""
    import shutil

    from pixelrec_jax.data import activations
    from pixelrec_jax.system.files import locked

    values, (what, *keys) = flags.FLAGS, argv[1:]
    if what not in ("list", "remove"):
        raise UserError(f"unknown {what!r}{nearest(what, ('list', 'remove'))}")
    if what == "list" and keys:
        raise UserError(f"unexpected argument {keys[0]!r}; pixelrec cache list takes none")
    if what == "remove" and not keys:
        raise UserError("KEY is missing; pixelrec cache list shows them")
    directory = Path(values.data) if values.data else None
    folders = {
        folder.name: folder
        for root in activations.roots(values.cache_dir, directory)
        for folder in activations.folders_in(root)
    }
    if what == "list":
        for folder in folders.values():
            print(_line(folder))
        if not folders:
            print("no activations")
    for key in keys:
        if key not in folders:
            raise UserError(f"there are no activations {key!r}{nearest(key, folders)}")
    for key in keys:
        busy = f"another process makes the activations {key}; wait for it"
        with locked(folders[key], option="cache_dir", busy=busy):
            shutil.rmtree(folders[key])
        print(f"removed {folders[key]}")


def _line(folder: Path) -> str:
    """Returns what a folder holds."""
    from pixelrec_jax.data import activations

    size = sum(path.stat().st_size for path in activations.files(folder).values())
    try:
        key = activations.KEY.read(folder / activations.KEY.name)
    except UserError as error:
        return f"{folder.name}  {size / 1e9:,.2f} GB, damaged: {error}"
    there, all_files = len(activations.files(folder)), len(activations.rows_of_files(key))
    state = "complete" if there == all_files else f"{there} of {all_files} files"
    return (
        f"{folder.name}  {size / 1e9:,.2f} GB, {state}, {activations.describe(key)}, "
        f"{key['image_size']} pixels, normalisation {key['normalisation']}, images "
        f"{key['images'][:12]}, weights {key['weights'][:12]}, in {folder.parent}"
    )


if __name__ == "__main__":
    _define_flags()
    program.run(main, arguments="list|remove KEY [KEY ...]")
