"""What holds for every test: no socket leaves this machine, quick tests run first."""

import os

import pytest

# More threads than cores only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A failure in a quick test should not wait for the slow ones."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
