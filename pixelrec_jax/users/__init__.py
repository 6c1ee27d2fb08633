"""User encoders: what a user is. One file per family, one line in the registry."""

from pixelrec_jax.users.acf import ACF
from pixelrec_jax.users.bert4rec import BERT4Rec
from pixelrec_jax.users.encoder import UserEncoder
from pixelrec_jax.users.gru4rec import GRU4Rec
from pixelrec_jax.users.lightgcn import LightGCN
from pixelrec_jax.users.lightsans import LightSANs
from pixelrec_jax.users.mf import MF
from pixelrec_jax.users.nextitnet import NextItNet
from pixelrec_jax.users.pooled import DSSM, FM
from pixelrec_jax.users.sasrec import SASRec
from pixelrec_jax.users.srgnn import SRGNN
from pixelrec_jax.users.vbpr import VBPR
from pixelrec_jax.users.visrank import VisRank

USER_ENCODERS: dict[str, type[UserEncoder]] = {
    "mf": MF,
    "lightgcn": LightGCN,
    "fm": FM,
    "dssm": DSSM,
    "srgnn": SRGNN,
    "bert4rec": BERT4Rec,
    "sasrec": SASRec,
    "lightsans": LightSANs,
    "gru4rec": GRU4Rec,
    "nextitnet": NextItNet,
    "vbpr": VBPR,
    "acf": ACF,
    "visrank": VisRank,
}
