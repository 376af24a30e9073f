"""The slow tests of the harness run when they are asked for: pytest -m soak."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: runs whole jobs for minutes; only with -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)
