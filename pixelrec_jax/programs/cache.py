"""Lists or removes cached activations, which runs with item.source=cached make.

pixelrec cache list [--data=data/custom] [--cache_dir=DIR]
pixelrec cache remove KEY [KEY ...] [--data=data/custom] [--cache_dir=DIR]

The folders are that in the dataset and that in the user's cache, or --cache_dir. A KEY is a name
that the list shows. A run that still reads what is removed ends at its next checkpoint, with one
line; started again, it makes the activations again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest


def _define_flags() -> None:
    program.define_path("data", "", "folder of a prepared dataset, to see activations in it")
    program.define_path("cache_dir", "", "as item.cache_dir")


def main(argv: Sequence[str]) -> None:
    """Does what the arguments say."""
    from pixelrec_jax.data import activations

    values = flags.FLAGS
    directory = Path(values.data) if values.data else None
    for line in act(argv[1:], activations.roots(values.cache_dir, directory)):
        print(line)


def act(words: Sequence[str], roots: Sequence[Path]) -> Iterator[str]:
    """Lists or removes activations below some folders; yields a line for each.

    Raises:
      UserError: the words are not understood, or no activations have a name that they give.
    """
    import shutil

    from pixelrec_jax.data import activations
    from pixelrec_jax.system.files import locked

    what, *keys = words
    if what not in ("list", "remove"):
        raise UserError(f"unknown {what!r}{nearest(what, ('list', 'remove'))}")
    if what == "list" and keys:
        raise UserError(f"unexpected argument {keys[0]!r}; pixelrec cache list takes none")
    if what == "remove" and not keys:
        raise UserError("KEY is missing; pixelrec cache list shows them")
    found = {folder.name: folder for root in roots for folder in activations.folders_in(root)}
    if what == "list":
        yield from map(_line, found.values())
        if not found:
            yield f"no activations in {' or '.join(map(str, roots))}"
    for key in keys:
        if key not in found:
            raise UserError(f"there are no activations {key!r}{nearest(key, found)}")
    for key in keys:
        busy = f"another process makes the activations {key}; wait for it"
        with locked(found[key], option="cache_dir", busy=busy):
            shutil.rmtree(found[key])
        yield f"removed {found[key]}"


def _line(folder: Path) -> str:
    """Returns what a folder holds."""
    from pixelrec_jax.data import activations

    files = activations.files(folder)
    size = sum(path.stat().st_size for path in files.values())
    line = f"{folder.name}  {size / 1e9:,.2f} GB in {folder.parent}, "
    try:
        key = activations.KEY.read(folder / activations.KEY.name)
    except UserError as error:
        return f"{line}damaged: {error}"
    expected = activations.num_files(key)
    state = "complete" if len(files) == expected else f"{len(files)} of {expected} files"
    return (
        f"{line}{state}: {activations.describe(key)}, {key['image_size']} pixels, normalisation "
        f"{key['normalisation']}, images {key['images'][:12]}, weights {key['weights'][:12]}"
    )


if __name__ == "__main__":
    _define_flags()
    program.run(main, arguments="list|remove KEY [KEY ...]")
