"""BERT4Rec: a bidirectional transformer over masked histories (Sun et al., CIKM 2019)."""

import jax

from pixelrec_jax.users.transformer import Transformer


class BERT4Rec(Transformer):
    """Encodes what may stand in each slot; histories have L + 1 slots and hold the mask item.

    Where a history ends in the mask item, as in ranking, the last query is the user now.
    """

    def visible(self, mask: jax.Array) -> jax.Array:
        """Returns bool[B, 1, L + 1]: slots that hold an item, the mask item included."""
        return mask[:, None, :]
