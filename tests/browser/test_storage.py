"""What a project stores, and deleting it, in a real browser: quiet, accessible, and it fits a phone."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from powermean.contracts.api import JobState
from powermean.contracts.storage import ProjectStorage, Retention
from tests.browser.test_accessibility import LOOKS, findings, pytestmark
from tests.browser.test_tokens import StandIn, signed_in, stand_in, token_tabs
from tests.dashboard.test_dashboard_storage import LARGEST, USES
from tests.support.browser_tabs import Tab, Tabs
from tests.support.fake_api import NOW

__all__ = ["pytestmark", "stand_in", "token_tabs"]  # fixtures
SHOTS = os.environ.get("POWERMEAN_TEST_SHOTS")


def shoot(tab: Tab, name: str) -> None:
    """A picture for people, if they want one."""
    if SHOTS:
        width = (tab.page.viewport_size or {})["width"]
        tab.page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png", full_page=True)


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_the_storage_page_and_a_deletion(
    stand_in: StandIn, token_tabs: Tabs, look: dict[str, object]
) -> None:
    stand_in.api.add_job("job-z", state=JobState.FINISHED, finished_at=NOW + timedelta(hours=1))
    used = LARGEST[4].model_copy(update={"in_use": "1 job trains on it"})
    largest = (*(thing.model_copy(update={"id": "job-z"}) for thing in LARGEST[:4]), used)
    stand_in.api.storage = ProjectStorage(
        project="default",
        bytes=5_000_001_000,
        limit=5_000_000_000,
        over_limit=True,
        uses=USES,
        largest=largest,
    )
    stand_in.api.retention = Retention(texts_days=30, checkpoints_last=2, checkpoints_best=True)
    tab = signed_in(token_tabs, stand_in, bypass_csp=True, **look)
    paths = ["/projects/default/storage", "/jobs/job-z/delete", "/jobs/job-z"]
    assert [found for path in paths for found in findings(tab, path)] == []
    for path in paths:
        tab.page.goto(path)
        shoot(tab, path.strip("/").replace("/", "-"))
        assert tab.too_wide() == {}, path
    tab.page.locator("#delete-link").click()
    shoot(tab, "dialog")
    tab.page.get_by_role("button", name="Keep it").click()
    assert stand_in.api.deleted == []
    tab.page.locator("#delete-link").click()
    tab.page.get_by_role("button", name="Delete the job").click()
    tab.page.wait_for_url("**/")
    assert stand_in.api.deleted == ["jobs/job-z"]
    assert tab.complaints == []
