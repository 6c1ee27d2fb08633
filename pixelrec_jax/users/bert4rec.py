"""BERT4Rec: a bidirectional transformer over masked histories (Sun et al., CIKM 2019)."""

from jaxtyping import Bool

from pixelrec_jax.data.types import Array
from pixelrec_jax.users.transformer import Transformer


class BERT4Rec(Transformer):
    """Encodes which item may stand in each slot; histories have L + 1 slots and hold the mask item.

    In ranking a history ends in the mask item, so the last query describes the user now.
    """

    def visible(self, mask: Bool[Array, "B L"]) -> Bool[Array, "B 1 L"]:
        """Returns the slots that hold an item, the mask item included."""
        return mask[:, None, :]
