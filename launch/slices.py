"""Slices of TPU pods: their names in Google Cloud, and their hosts.

A slice has a topology, as in v5e:4x4, and an accelerator type, as in v5litepod-16. The number in an
accelerator type counts chips for v5e and v6e, but TensorCores, two a chip, for v4, v5p and TPU7x.

Sources: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages v4, v5e, v5p and
v6e beside it; for GKE https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; for
TPU7x, which Cloud TPU does not serve, the names of xpk (src/xpk/core/system_characteristics.py).
"""

import math
import re
from dataclasses import dataclass

from pixelrec_jax.system.errors import UserError, nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16", "8x16x16", "16x16x16"),
)


@dataclass(frozen=True)
class _Generation:
    accelerator: str  # prefix of the accelerator type
    cores: int  # of a chip, as the accelerator type counts them
    gke: str  # label of the nodes in GKE
    runtime: str  # software of the VMs of Cloud TPU; "" if it does not serve them
    topologies: tuple[str, ...]  # those with an accelerator type
    chips_of_one_host: int  # the largest slice with a single host
    most_chips: int  # of a slice
    devices: int = 1  # of JAX, for each chip


_GENERATIONS = {
    "v4": _Generation("v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base", _DEEP, 4, 4096),
    "v5e": _Generation(
        "v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", _FLAT, 8, 256
    ),
    "v5p": _Generation("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5", (*_DEEP, "16x16x24"), 4, 6144),
    "v6e": _Generation("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e", _FLAT, 8, 256),
    "tpu7x": _Generation("tpu7x", 2, "tpu7x", "", ("1x1x1", *_DEEP), 4, 9216, devices=2),
}
_PREFIXES = {of.accelerator: name for name, of in _GENERATIONS.items()} | {
    name: name for name in _GENERATIONS
}


@dataclass(frozen=True)
class Slice:
    """One slice of a pod.

    Attributes:
      generation: the TPU, as in v5e.
      topology: its chips along each axis, as in 4x4.
    """

    generation: str
    topology: str

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Returns the slice that "v5e:4x4", "v5litepod-16" or "v5e-16" names.

        Raises:
          UserError: the slice does not exist.
        """
        if not text:
            raise UserError("--topology is missing; give a TPU slice, as in v5e:4x4")
        name, colon, topology = text.partition(":")
        if not colon:
            name = text.partition("-")[0]
        if name not in _PREFIXES:
            raise UserError(
                f"--topology={text}: unknown TPU {name!r}{nearest(name, _PREFIXES)}; expected one "
                "with its topology, as in v5e:4x4, or an accelerator type, as in v5litepod-16"
            )
        generation = _PREFIXES[name]
        of = _GENERATIONS[generation]
        every = [cls(generation, topology) for topology in of.topologies]
        if "-" in text:
            known = {f"{name}-{each.chips * of.cores}": each for each in every}
        else:
            known = {f"{name}:{each.topology}": each for each in every}
            if of.topologies is not _FLAT and cls._is_of_cubes(topology, of.most_chips):
                known[text] = cls(generation, topology)
        if text not in known:
            raise UserError(f"--topology={text}: no such slice; expected one of {', '.join(known)}")
        return known[text]

    @staticmethod
    def _is_of_cubes(topology: str, most_chips: int) -> bool:
        """Returns whether a topology joins cubes of 4x4x4 chips, its longest axis last."""
        if not re.fullmatch(r"\d{1,4}x\d{1,4}x\d{1,4}", topology):
            return False
        sizes = [int(size) for size in topology.split("x")]
        whole = all(size and size % 4 == 0 for size in sizes)
        return whole and sizes == sorted(sizes) and math.prod(sizes) <= most_chips

    def __str__(self) -> str:
        """Returns the name with the topology, as in v5e:4x4."""
        return f"{self.generation}:{self.topology}"

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def devices(self) -> int:
        """The number of JAX devices."""
        return self.chips * self._of.devices

    @property
    def hosts(self) -> int:
        """The number of hosts; in a slice of several, each has four chips."""
        return 1 if self.chips <= self._of.chips_of_one_host else self.chips // 4

    @property
    def accelerator_type(self) -> str:
        """The accelerator type, as in v5litepod-16."""
        return f"{self._of.accelerator}-{self.chips * self._of.cores}"

    @property
    def gke_accelerator(self) -> str:
        """The label of its nodes in GKE, as in tpu-v5-lite-podslice."""
        return self._of.gke

    @property
    def runtime(self) -> str:
        """The software of its VMs in Cloud TPU, as in v2-alpha-tpuv5-lite; "" if there are none."""
        return self._of.runtime

    @property
    def _of(self) -> _Generation:
        return _GENERATIONS[self.generation]
