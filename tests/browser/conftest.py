"""Chromium against the real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dashboard import assets
from tests.support.browser_tabs import Tabs
from tests.support.real_service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


# Playwright keeps an event loop running in this thread, where no test could then start one of its own:
# it must be gone before the tests of other modules run.
@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """The system's Chromium; without it, or without the plotting library, tests are skipped and say why."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: make install-test"
    )
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    missing = [name for name, file in assets.VENDOR.items() if not file.is_file()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; run {assets.INSTALL}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def service(tmp_path: Path, chromium: "Browser") -> Iterator[Service]:
    running = Service(tmp_path)
    yield running
    running.close()


@pytest.fixture
def tabs(chromium: "Browser", service: Service) -> Iterator[Tabs]:
    opened = Tabs(chromium, service)
    yield opened
    opened.close()
