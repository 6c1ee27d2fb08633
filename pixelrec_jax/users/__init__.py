"""User encoders: what a user is. One file per family, one line in the registry."""

import flax.linen as nn

from pixelrec_jax.users.sasrec import SASRec

# A user encoder maps a History to states float32[B, S, D], S = L or 1; training scores the last T
# states against the T targets of a row, ranking uses the last state.
USER_ENCODERS: dict[str, type[nn.Module]] = {"sasrec": SASRec}
