"""The index of weights in several files, as the hub's libraries write it beside them."""

import json
from pathlib import Path

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import read_bytes

SUFFIX = ".index.json"
_LARGEST = 2**26  # bytes; a name takes some hundred


def read_index(path: Path) -> dict[str, list[str]]:
    """Returns the names of the tensors in each file that an index names.

    Files are named without folders: an index leads to nothing outside of its own folder.

    Raises:
      UserError: it is not an index of this form.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        names = json.loads(read_bytes(path))["weight_map"]
        files: dict[str, list[str]] = {}
        for name, file in names.items():
            if file != Path(file).name or file.startswith(".") or file.endswith(SUFFIX):
                raise ValueError(f"it names the file {file[:100]!r}, which is not beside it")
            files.setdefault(file, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not an index of weights ({error}); fetch it again, or give a file of "
            "weights"
        ) from None
    return files
