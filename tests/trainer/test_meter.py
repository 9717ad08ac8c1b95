"""The peak of a device by its name, and the share of it that a run makes use of."""

import pytest

from trainwright.devices.meter import PEAKS, peak_of, utilization

NAMES = {
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA GH200 480GB": 989.5e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA B200": 2250e12,
    "AMD Instinct MI300X": 1307.4e12,
    "AMD Instinct MI300X OAM": 1307.4e12,
    "AMD Instinct MI250X/MI250": 191.5e12,
    "TPU v6e": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5litepod": 197e12,
    "TPU v7": 1153.5e12,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA GeForce GTX 1080": None,
    "AMD Instinct MI8": None,
    "CPU": None,
    "": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_known_by_a_word_of_its_name(name):
    assert peak_of(name) == NAMES[name]


def test_every_peak_is_that_of_one_device():
    assert all(1e13 < peak < 1e16 for peak in PEAKS.values())
    assert all(peak_of(name) == peak for name, peak in PEAKS.items())


def test_utilization_is_the_share_of_what_all_devices_could_have_done():
    assert utilization(4e14, 2.0, 1e14, devices=4) == 0.5


@pytest.mark.parametrize(("operations", "seconds", "peak"), [(0, 1, 1e14), (1e14, 0, 1e14), (1e14, 1, None)])
def test_what_is_not_known_has_no_utilization(operations, seconds, peak):
    assert utilization(operations, seconds, peak, devices=1) is None
