"""A node's page in a real browser over the stand-in API: it fits a phone, it draws, and its button drains."""

from datetime import UTC, datetime

import pytest

from powermean.contracts.api import NodeDrain
from tests.browser.test_accessibility import LOOKS, findings
from tests.browser.test_tokens import PHONE, StandIn, signed_in, stand_in, token_tabs
from tests.dashboard.test_dashboard_nodes import NODE
from tests.dashboard.test_dashboard_use import used
from tests.support.browser_tabs import Tabs

__all__ = ["stand_in", "token_tabs"]  # fixtures


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_it_is_quiet_fits_and_is_accessible(
    stand_in: StandIn, token_tabs: Tabs, look: dict[str, object]
) -> None:
    closed = {"closed": "draining", "closed_reason": "kernel update", "drain_at": NODE.seen_at}
    for changes in ({}, closed):
        stand_in.api.nodes = [NODE.model_copy(update=changes)]
        tab = signed_in(token_tabs, stand_in, bypass_csp=True, **look)
        for path in ("/nodes/node-a", "/cluster"):
            assert findings(tab, path) == []
            assert tab.too_wide() == {}
        assert tab.complaints == []


def test_its_button_drains_it_from_a_time_on(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.nodes = [NODE]
    tab = signed_in(token_tabs, stand_in, color_scheme="light")
    tab.page.goto("/nodes/node-a")
    tab.page.get_by_label("Reason").fill("kernel update")
    tab.page.get_by_label("From (UTC)").fill("2026-12-01T22:00")
    tab.page.get_by_role("button", name="Drain").click()
    tab.page.wait_for_url("**/nodes/node-a")
    tab.until(lambda: stand_in.api.closings != [], "it is drained")
    at = datetime(2026, 12, 1, 22, tzinfo=UTC)
    assert stand_in.api.closings == [("node-a", "drain", NodeDrain(reason="kernel update", at=at))]


def test_what_it_used_is_drawn_and_goes_on(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.nodes, stand_in.api.samples = [NODE], used(minutes=60)
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE):
        tab = signed_in(token_tabs, stand_in, **options)
        for path in ("/nodes/node-a", "/cluster"):
            tab.page.goto(path)
            tab.page.wait_for_selector("#use[data-drawn]")
            assert tab.page.locator("#use canvas").count() == 2
            titles = [one.inner_text() for one in tab.page.locator("#use h3").all()]
            assert titles == ["GPU utilisation", "GPU memory used"]
            assert tab.too_wide() == {}
        assert tab.complaints == []
