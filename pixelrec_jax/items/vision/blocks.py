"""Which blocks of a vision encoder are trained."""

import re
from collections.abc import Sequence

from pixelrec_jax.system.errors import UserError, nearest

NORM = "norm"  # name of a block that is only a final norm
ATTENTION_POOL = "attention_pool"
POOL = "pool"  # name of pooling without weights, a step of a backbone that is not a block


def resolve_trainable(option: str | Sequence[str], blocks: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the blocks that `item.trainable` means, from pixels to tokens.

    Args:
      option: "all", "none", "last:n", or names of blocks; a string separates them by commas. As in
        the reference, "last:n" does not count a final norm, which is trained with them, nor
        attention pooling, which stays frozen.
      blocks: the encoder's blocks.

    Raises:
      UserError: an unknown block or a malformed option.
    """
    if option == "all":
        return tuple(blocks)
    if option == "none":
        return ()
    if isinstance(option, str) and (match := re.fullmatch(r"last:(\d+)", option)):
        counted = [name for name in blocks if name not in (NORM, ATTENTION_POOL)]
        if not 1 <= int(match[1]) <= len(counted):
            raise UserError(
                f"item.trainable={option!r}: the encoder has {len(counted)} blocks; give last:1 to "
                f"last:{len(counted)}"
            )
        chosen = (*counted[-int(match[1]) :], NORM)
        return tuple(name for name in blocks if name in chosen)
    # Also "('block_10', 'block_11')", as a tuple arrives from a command line.
    names = re.findall(r"[\w:.-]+", option) if isinstance(option, str) else list(option)
    for name in names:
        if name not in blocks:
            known = [*blocks, *(["all", "none", "last:2"] if len(names) == 1 else [])]
            raise UserError(f"item.trainable: unknown block {name!r}{nearest(name, known)}")
    if not names:
        raise UserError(f"item.trainable={option!r}; give all, none, last:2 or names of blocks")
    return tuple(name for name in blocks if name in names)
