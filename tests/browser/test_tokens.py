"""Tokens in colour, in a real browser: pointing, the keyboard, themes, phones; and from a chart to a step.

Most pages stand over the stand-in API: what they show is then exactly what the test wrote.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import uvicorn

from dashboard.app import create_dashboard
from powermean.artefacts import ArtefactStore
from powermean.contracts.names import session_cookie
from powermean.contracts.token_records import StepFacts, UpdateTokens
from powermean.token_segments import write_segment
from tests.dashboard.test_dashboard_trajectory import PIECES, record, with_tokens
from tests.support.browser_tabs import Tab, Tabs
from tests.support.fake_api import FakeApi
from tests.support.fake_api_routes import create_api
from tests.support.real_service import Service, free_port, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STEP = "/jobs/job-a/steps/5"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NARROW = {"viewport": {"width": 320, "height": 640}}


@dataclass
class StandIn:
    """Where the dashboard over the stand-in API listens."""

    api: FakeApi
    url: str


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    api = FakeApi()
    app = create_api(api)
    app.mount("/", create_dashboard(app))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "the stand-in's start")
    yield StandIn(api, f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def token_tabs(chromium: "Browser", stand_in: StandIn) -> Iterator[Tabs]:
    opened = Tabs(chromium, stand_in)
    yield opened
    opened.close()


def signed_in(tabs: Tabs, stand_in: StandIn, **options: object) -> Tab:
    tab = tabs.stranger(**options)
    name = session_cookie(stand_in.url.partition("//")[2])
    tab.page.context.add_cookies([{"name": name, "value": "open", "url": stand_in.url}])
    return tab


@pytest.mark.parametrize("path", [f"{STEP}/trajectories/1", f"{STEP}/groups/0?by=log-ratio"])
def test_pages_are_quiet_and_fit_a_phone(stand_in: StandIn, token_tabs: Tabs, path: str) -> None:
    with_tokens(stand_in.api, record())
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE):
        tab = signed_in(token_tabs, stand_in, **options)
        tab.page.goto(path)
        tokens = tab.page.locator("[data-tokens] > span")
        assert tokens.all_text_contents() == list(PIECES)
        if "has_touch" in options:  # wide enough for a finger; a line break and nothing at all have no width
            widths = [tokens.nth(place).bounding_box()["width"] for place in (0, 2)]  # type: ignore[index]
            assert min(widths) >= 24
        assert tab.too_wide() == {}
        assert tab.complaints == []


def test_p_and_ess_of_a_step_are_on_screen_on_a_phone(stand_in: StandIn, token_tabs: Tabs) -> None:
    with_tokens(stand_in.api, record())
    for options in (PHONE, NARROW):
        tab = signed_in(token_tabs, stand_in, **options)
        tab.page.goto(STEP)
        for label in ("p", "ESS"):
            cells = tab.page.locator(f"td[data-label='{label}']").all()
            assert cells
            for cell in cells:
                box = cell.bounding_box()
                assert box
                assert 0 <= box["x"] <= box["x"] + box["width"] <= options["viewport"]["width"]  # type: ignore[index]


def test_pointing_at_a_token_and_walking_with_the_keyboard(stand_in: StandIn, token_tabs: Tabs) -> None:
    with_tokens(stand_in.api, record())
    tab = signed_in(token_tabs, stand_in)
    tab.page.goto(f"{STEP}/trajectories/1")
    told, tokens = tab.page.locator("[data-told]"), tab.page.locator("[data-tokens] > span")
    tokens.nth(0).hover()
    assert told.inner_text().startswith('" 4" · token 0 · id 100 · log-ratio 0 · ratio 1 · W 0.2500')
    tokens.nth(0).focus()
    tab.page.keyboard.press("ArrowRight")
    assert told.inner_text().startswith('"\\n" · token 1')
    tab.page.keyboard.press("ArrowRight")
    assert "<script>alert(1)</script>" in told.inner_text()
    assert "clipped: no gradient" in told.inner_text()
    tab.page.keyboard.press("End")
    assert '"" · token 3' in told.inner_text()
    assert tab.page.locator("[data-tokens] [tabindex]").count() == 1  # one stop for the tab key
    assert tab.complaints == []


def test_colours_are_drawn_and_can_be_chosen(stand_in: StandIn, token_tabs: Tabs) -> None:
    with_tokens(stand_in.api, record())
    tab = signed_in(token_tabs, stand_in, java_script_enabled=False, color_scheme="light")

    def drawn(place: int) -> list[str]:
        token = tab.page.locator("[data-tokens] > span").nth(place)
        names = ("backgroundColor", "outlineStyle")
        return [token.evaluate(f"(token) => getComputedStyle(token).{name}") for name in names]

    tab.page.goto(f"{STEP}/trajectories/1")
    assert drawn(0) == ["rgb(208, 223, 249)", "none"]  # uniform
    assert drawn(2) == ["rgba(0, 0, 0, 0)", "dashed"]  # clipped: hollow
    tab.page.get_by_role("link", name="log-ratio x").click()
    tab.page.wait_for_url("**?by=log-ratio*")
    assert drawn(1) == ["rgb(226, 146, 74)", "none"]  # less likely
    assert drawn(2) == ["rgb(28, 68, 166)", "dashed"]
    tab.page.locator("#tokens").get_by_role("link", name="1", exact=True).click()
    tab.page.wait_for_url("**?by=log-ratio&update=1")
    assert drawn(2) == ["rgb(255, 255, 255)", "none"]
    tab.page.get_by_text("All 4 tokens as a table").click()
    assert tab.page.locator(".token-table tbody tr").count() == 4


def test_three_thousand_tokens_are_drawn_quickly(stand_in: StandIn, token_tabs: Tabs) -> None:
    count = 3000
    update = UpdateTokens(
        update=0, log_ratio=(0.1,) * count, weight=(1 / count,) * count, clipped=(False,) * count
    )
    with_tokens(stand_in.api, record(tuple(f" word{i}" for i in range(count)), updates=(update,)))
    tab = signed_in(token_tabs, stand_in)
    started = time.monotonic()
    tab.page.goto(f"{STEP}/trajectories/1")
    tab.page.locator("[data-tokens] > span").last.scroll_into_view_if_needed()
    tab.page.locator("[data-tokens] > span").last.hover()
    tab.shows("[data-told]", "token 2999")
    assert time.monotonic() - started < 10  # about 1 s on an idle machine


def test_from_the_store_to_the_page(service: Service, tabs: Tabs) -> None:
    run = service.running()
    facts = StepFacts(step=4, progress=0, mean_reward=0.5, reward_std=0.5, max_new_tokens=8, updates=())
    records = [record(index=index) for index in range(8)]
    store = ArtefactStore(service.settings.artefacts_url)
    kept = store.put_bytes(f"jobs/{run.job_id}/tokens", "4.jsonl.gz", write_segment(facts, records))
    row = {"group": 0, "problem": "3+4", "reward": 1.0, "advantage": 0.5, "length": 4, "truncated": False}
    rows = [row | {"index": index, "group": index // 8} for index in range(16)]
    run.post("trajectories", {"step": 4, "rows": rows, "tokens": kept.model_dump(), "token_rows": 8})
    tab = tabs.open()
    tab.page.goto(f"{run.path}/steps/4")
    assert tab.page.get_by_role("link", name="tokens in colour").count() == 8
    tab.page.get_by_role("link", name="tokens in colour").first.click()
    tab.page.wait_for_url("**/trajectories/0*")
    assert tab.page.locator("[data-tokens] > span").all_text_contents() == list(PIECES)
    tab.page.get_by_role("link", name="Group 0").click()
    tab.page.wait_for_url("**/steps/4/groups/0?by=weight")
    assert tab.page.locator("[data-tokens]").count() == 8
    tab.page.get_by_role("link", name="1 →").click()
    tab.shows(".hint", "record.tokens")
    assert tab.complaints == []


def test_from_a_chart_to_a_step(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(*range(5))
    tab = tabs.open().open(run)
    tab.wait_for_points("reward", "reward", 5)
    plot = tab.page.locator("#chart-reward .plot")
    x = plot.evaluate(
        """async (plot) => {
            const echarts = await import(document.getElementById("job-script").dataset.echarts);
            return echarts.getInstanceByDom(plot).convertToPixel({ xAxisIndex: 0 }, 3);
        }"""
    )
    # Both clicks in one go: a renderer that is held up between them sees two single ones.
    plot.evaluate(
        """(plot, x) => {
            const canvas = plot.querySelector("canvas");
            const { left, top } = plot.getBoundingClientRect();
            const at = { clientX: left + x, clientY: top + 60, bubbles: true, view: window };
            const click = ["pointerdown", "mousedown", "pointerup", "mouseup", "click"];
            for (const name of [...click, ...click, "dblclick"]) {
                const Kind = name.startsWith("pointer") ? PointerEvent : MouseEvent;
                canvas.dispatchEvent(new Kind(name, at));
            }
        }""",
        x,
    )  # shows the whole run, and stays
    tab.page.wait_for_timeout(600)
    assert tab.page.url.endswith(f"{run.path}/charts")
    plot.click(position={"x": x, "y": 60})
    tab.page.wait_for_url(f"**{run.path}/steps/3")
    tab.open(run)
    tab.page.get_by_role("button", name="Reward as a table").click()
    tab.page.locator("#chart-reward .data").get_by_role("link", name="2", exact=True).click()
    tab.page.wait_for_url(f"**{run.path}/steps/2")
