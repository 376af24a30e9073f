"""Data sheets are found by the name that a device tells."""

from inat_job.bench.device import peak


def test_a_device_is_known_by_its_name() -> None:
    assert peak("NVIDIA H100 80GB HBM3") == peak("NVIDIA H200") == 989
    assert peak("NVIDIA A100-SXM4-40GB") == 312
    assert (peak("Tesla T4"), peak("NVIDIA L4"), peak("NVIDIA A10G"), peak("Tesla V100-SXM2-16GB")) == (
        65,
        121,
        70,
        125,
    )
    assert peak("NVIDIA L40S") is None
    assert peak("cpu x86_64") is None
