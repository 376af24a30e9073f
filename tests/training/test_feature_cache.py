"""When features are cached: only where reading them is faster than computing them."""

from hypothesis import given
from hypothesis import strategies as st

from inat_job.models.flops import MACS_PER_S
from inat_job.training.feature_cache import pays

AMOUNTS = st.integers(0, 10**12)


@given(AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from(sorted(MACS_PER_S)))
def test_caching_pays_less_with_more_bytes_or_fewer_macs(size: int, more: int, macs: int, accelerator: str) -> None:
    if pays(size + more, macs, accelerator):
        assert pays(size, macs, accelerator)
        assert pays(size + more, macs + more, accelerator)


def test_a_head_pays_everywhere_and_large_feature_maps_only_on_cpu() -> None:
    resnet50_head, resnet50_layer3 = (4 * 2048, 4_100_000_000), (4 * 1024 * 14 * 14, 3_300_000_000)
    assert [pays(*resnet50_head, name) for name in ("cpu", "cuda")] == [True, True]
    assert [pays(*resnet50_layer3, name) for name in ("cpu", "cuda")] == [True, False]
    assert not pays(4 * 3 * 224 * 224, 0, "cpu")
