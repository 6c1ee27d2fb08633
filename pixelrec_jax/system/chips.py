"""Peaks of TPU chips as Google publishes them (cloud.google.com/tpu/docs, one page a chip)."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixelrec_jax.system.errors import UserError, nearest


@dataclass(frozen=True)
class Chip:
    """What one JAX device of a kind can do at most; on TPU7x a device is half a chip.

    Attributes:
      flops: bfloat16 operations a second. Matrix products of float32 run in bfloat16, too, at JAX's
        default precision on TPU.
      hbm: bytes; the runtime keeps a few percent of them for itself.
      hbm_bandwidth: bytes a second.
      ici: bytes a second that a device sends to its neighbours over all its links.
      axes: of the torus, two links each.
      dcn: bytes a second that a device sends to other slices.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    axes: int
    dcn: float


def _chip(
    *, tflops: float, hbm: float, hbm_gbps: float, ici_gbps: float, axes: int, dcn_gbit: float
) -> Chip:
    # The pages give links in both directions together, and the network of a whole pod in bits.
    return Chip(
        flops=tflops * 1e12,
        hbm=hbm * 2**30,
        hbm_bandwidth=hbm_gbps * 1e9,
        ici=ici_gbps / 2 * 1e9,
        axes=axes,
        dcn=dcn_gbit / 8 * 1e9,
    )


CHIPS = {
    "v5e": _chip(tflops=197, hbm=16, hbm_gbps=819, ici_gbps=400, axes=2, dcn_gbit=25),
    "v5p": _chip(tflops=459, hbm=95, hbm_gbps=2765, ici_gbps=1200, axes=3, dcn_gbit=50),
    "v6e": _chip(tflops=918, hbm=32, hbm_gbps=1640, ici_gbps=800, axes=2, dcn_gbit=100),
    "tpu7x": _chip(tflops=1153.5, hbm=96, hbm_gbps=3690, ici_gbps=600, axes=3, dcn_gbit=50),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:4x4".

    Raises:
      UserError: the name is not written so, or the chip is not known.
    """
    name, colon, shape = topology.partition(":")
    if not colon or not all(part.isdecimal() and int(part) for part in shape.split("x")):
        raise UserError(
            f"--topology={topology!r} is not CHIP:SHAPE; write it as v5e:4x4 or v5p:4x4x4"
        )
    if name not in CHIPS:
        raise UserError(f"--topology={topology!r}: unknown chip {name!r}{nearest(name, CHIPS)}")
    axes = len(shape.split("x"))
    if axes != CHIPS[name].axes:
        raise UserError(
            f"--topology={topology!r} has {axes} axes, but {name} is connected as a torus of "
            f"{CHIPS[name].axes}; write {name}:{'x'.join('4' * CHIPS[name].axes)}, for example"
        )
    return CHIPS[name]


def spanned_axes(coordinates: Sequence[Sequence[int]]) -> int:
    """Returns along how many axes of the torus these chips differ."""
    return sum(len(set(axis)) > 1 for axis in zip(*coordinates, strict=True))
