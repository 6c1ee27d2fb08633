"""Peaks of devices, found by the name that JAX gives them."""

import jax
import pytest

from pixelrec_jax.launch.dryrun.programs import describe_pod
from pixelrec_jax.system.chips import CHIPS, peaks_of


@pytest.mark.parametrize(
    ("chip", "topology"), [("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2"), ("tpu7x", "2x2x1")]
)
def test_the_peaks_of_a_running_tpu_are_those_of_the_dry_run(chip, topology):
    pytest.importorskip("libtpu")
    (kind,) = {device.device_kind for device in describe_pod(f"{chip}:{topology}").devices}
    assert peaks_of(kind) is CHIPS[chip]


def test_peaks_of_gpus_are_of_the_whole_gpu():
    sxm, pcie = peaks_of("NVIDIA H100 80GB HBM3"), peaks_of("NVIDIA H100 PCIe")
    assert sxm.flops > pcie.flops
    assert sxm.hbm_bandwidth > pcie.hbm_bandwidth
    assert peaks_of("NVIDIA H200").hbm_bandwidth > sxm.hbm_bandwidth
    assert peaks_of("NVIDIA A100-SXM4-80GB").hbm == 2 * peaks_of("NVIDIA A100-SXM4-40GB").hbm
    assert peaks_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


def test_what_is_not_known_has_no_peaks():
    assert peaks_of(jax.devices("cpu")[0].device_kind) is None
