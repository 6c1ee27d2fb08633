"""Peaks of TPUs and GPUs as their makers publish them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The peaks of one JAX device of a kind.

    Attributes:
      flops: bfloat16 operations a second, without sparsity; float16 for GPUs without bfloat16
        units. On TPU, float32 matrix products also run in bfloat16 at JAX's default precision.
      hbm: bytes of memory; the runtime keeps a few percent of them for itself.
      hbm_bandwidth: bytes a second between memory and chip.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Chip(Peaks):
    """The peaks of a TPU and of its network; on TPU7x a device is half a chip.

    Attributes:
      ici: bytes a second that a device sends to its neighbours over all its links.
      axes: number of axes of the torus, with two links each.
      dcn: bytes a second that a device sends to other slices.
    """

    ici: float
    axes: int
    dcn: float


def _chip(
    *, tflops: float, hbm: float, hbm_gbps: float, ici_gbps: float, axes: int, dcn_gbit: float
) -> Chip:
    # The pages give the sum of both directions of the links, and the network of a pod in bits;
    # `dcn_gbit` is the share of a chip.
    return Chip(
        flops=tflops * 1e12,
        hbm=hbm * 2**30,
        hbm_bandwidth=hbm_gbps * 1e9,
        ici=ici_gbps / 2 * 1e9,
        axes=axes,
        dcn=dcn_gbit / 8 * 1e9,
    )


def _peaks(*, tflops: float, hbm: float, hbm_gbps: float) -> Peaks:
    return Peaks(flops=tflops * 1e12, hbm=hbm * 2**30, hbm_bandwidth=hbm_gbps * 1e9)


# Source: cloud.google.com/tpu/docs, one page for each chip.
CHIPS = {
    "v5e": _chip(tflops=197, hbm=16, hbm_gbps=819, ici_gbps=400, axes=2, dcn_gbit=25),
    "v5p": _chip(tflops=459, hbm=95, hbm_gbps=2765, ici_gbps=1200, axes=3, dcn_gbit=50),
    "v6e": _chip(tflops=918, hbm=32, hbm_gbps=1640, ici_gbps=800, axes=2, dcn_gbit=100),
    "tpu7x": _chip(tflops=1153.5, hbm=96, hbm_gbps=3690, ici_gbps=600, axes=3, dcn_gbit=50),
}

# By `jax.Device.device_kind`, which on GPUs is the name that the driver gives. A slice of a GPU
# (MIG) has another name and is not listed.
_PEAKS: dict[str, Peaks] = {
    # On TPU v2 and v3 a device is half a chip; the pages give a chip.
    "TPU v2": _peaks(tflops=45 / 2, hbm=16 / 2, hbm_gbps=700 / 2),
    "TPU v3": _peaks(tflops=123 / 2, hbm=32 / 2, hbm_gbps=900 / 2),
    "TPU v4": _peaks(tflops=275, hbm=32, hbm_gbps=1200),
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5e": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v5p": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU v6e": CHIPS["v6e"],
    "TPU7x": CHIPS["tpu7x"],
    # NVIDIA's data sheets. From Ampere on, they print rates with sparsity, which are twice these.
    # DGX B200 data sheet: 8 GPUs have 36 PFLOP/s with sparsity, 1,440 GB and 64 TB/s.
    "NVIDIA B200": _peaks(tflops=2250, hbm=180, hbm_gbps=8000),
    # H200 data sheet, SXM.
    "NVIDIA H200": _peaks(tflops=989.5, hbm=141, hbm_gbps=4800),
    # H100 data sheet: SXM, PCIe, NVL.
    "NVIDIA H100 80GB HBM3": _peaks(tflops=989.5, hbm=80, hbm_gbps=3350),
    "NVIDIA H100 PCIe": _peaks(tflops=756.5, hbm=80, hbm_gbps=2000),
    "NVIDIA H100 NVL": _peaks(tflops=835.5, hbm=94, hbm_gbps=3900),
    # A100 data sheets, of 40 GB and of 80 GB.
    "NVIDIA A100-SXM4-40GB": _peaks(tflops=312, hbm=40, hbm_gbps=1555),
    "NVIDIA A100-PCIE-40GB": _peaks(tflops=312, hbm=40, hbm_gbps=1555),
    "NVIDIA A100-SXM4-80GB": _peaks(tflops=312, hbm=80, hbm_gbps=2039),
    "NVIDIA A100 80GB PCIe": _peaks(tflops=312, hbm=80, hbm_gbps=1935),
    # Data sheets of L40S, L4, A10 and A10G.
    "NVIDIA L40S": _peaks(tflops=362, hbm=48, hbm_gbps=864),
    "NVIDIA L4": _peaks(tflops=121, hbm=24, hbm_gbps=300),
    "NVIDIA A10": _peaks(tflops=125, hbm=24, hbm_gbps=600),
    "NVIDIA A10G": _peaks(tflops=70, hbm=24, hbm_gbps=600),
    # V100 data sheet, float16.
    "Tesla V100-SXM2-16GB": _peaks(tflops=125, hbm=16, hbm_gbps=900),
    "Tesla V100-SXM2-32GB": _peaks(tflops=125, hbm=32, hbm_gbps=900),
    "Tesla V100-PCIE-16GB": _peaks(tflops=112, hbm=16, hbm_gbps=900),
    "Tesla V100-PCIE-32GB": _peaks(tflops=112, hbm=32, hbm_gbps=900),
    # T4 product brief, float16.
    "Tesla T4": _peaks(tflops=65, hbm=16, hbm_gbps=320),
}


def peaks_of(device_kind: str) -> Peaks | None:
    """Returns the peaks of devices with this `jax.Device.device_kind`, None if unknown."""
    return _PEAKS.get(device_kind)


def spanned_axes(coordinates: Sequence[Sequence[int]]) -> int:
    """Returns the number of axes of the torus along which these chips differ."""
    return sum(len(set(axis)) > 1 for axis in zip(*coordinates, strict=True))
