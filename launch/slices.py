"""Slices of TPU pods: their names in Google Cloud, and their hosts.

Sources: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and, for GKE,
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
"""

import math
from dataclasses import dataclass

from pixelrec_jax.system.errors import UserError, nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16", "8x16x16"),
)


@dataclass(frozen=True)
class _Generation:
    accelerator: str  # prefix of the accelerator type of Cloud TPU
    cores: int  # cores of a chip, as the accelerator type counts them
    gke: str  # label of the nodes in GKE
    runtime: str  # software of the VMs
    topologies: tuple[str, ...]
    chips_of_one_host: int  # the largest slice with a single host


_GENERATIONS = {
    "v4": _Generation("v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base", _DEEP, 4),
    "v5e": _Generation("v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", _FLAT, 8),
    "v5p": _Generation("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5", (*_DEEP, "16x16x16"), 4),
    "v6e": _Generation("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e", _FLAT, 8),
}


@dataclass(frozen=True)
class Slice:
    """One slice of a pod, as in v5e:4x4."""

    generation: str
    topology: str

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Returns the slice that "v5e:4x4" names.

        Raises:
          UserError: the slice does not exist.
        """
        if not text:
            raise UserError("--topology is missing; give a TPU slice, as in v5e:4x4")
        generation, _, topology = text.partition(":")
        if generation not in _GENERATIONS:
            raise UserError(
                f"--topology={text}: unknown TPU {generation!r}{nearest(generation, _GENERATIONS)}"
                "; expected one with its topology, as in v5e:4x4"
            )
        known = _GENERATIONS[generation].topologies
        if topology not in known:
            raise UserError(
                f"--topology={text}: {generation} has no topology {topology!r}; expected one of "
                f"{', '.join(known)}"
            )
        return cls(generation, topology)

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """The number of hosts; in a slice of several, each has four chips."""
        return 1 if self.chips <= self._of.chips_of_one_host else self.chips // 4

    @property
    def accelerator_type(self) -> str:
        """The accelerator type in Cloud TPU, as in v5litepod-16."""
        return f"{self._of.accelerator}-{self.chips * self._of.cores}"

    @property
    def gke_accelerator(self) -> str:
        """The label of its nodes in GKE, as in tpu-v5-lite-podslice."""
        return self._of.gke

    @property
    def runtime(self) -> str:
        """The software of its VMs in Cloud TPU, as in v2-alpha-tpuv5-lite."""
        return self._of.runtime

    @property
    def _of(self) -> _Generation:
        return _GENERATIONS[self.generation]
