"""Matrix factorisation: a user is a row of a table (Koren et al. 2009; BPR, Rendle et al. 2009)."""

import flax.linen as nn
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.parallel.tables import embedding_lookup
from pixelrec_jax.users.encoder import UserEncoder


class MF(UserEncoder):
    """Looks up users in a table and does not read the history."""

    has_table = True

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32."""
        shape = (self.num_users, self.width)
        init = nn.initializers.xavier_normal()
        return embedding_lookup(self, "table", init, shape, history.user)[:, None]
