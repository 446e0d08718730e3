"""Pages under test: what they show, what they plot, and what they complain of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.real_service import ADMIN_KEY, Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

WAIT_MS = 20_000
WIDTHS = (320, 360, 700, 900, 1280)  # phones, a tablet, half a screen, a laptop
# Two frames, so that charts have followed the new width.
OVERFLOW = """() => new Promise((told) => requestAnimationFrame(() => requestAnimationFrame(
    () => told(document.scrollingElement.scrollWidth - innerWidth))))"""


@dataclass
class Tab:
    """A page, with everything that its console and its policy complained of."""

    page: "Page"
    complaints: list[str] = field(default_factory=list)

    def open(self, run: Any, part: str = "charts") -> "Tab":
        """A part of a job's page, with its charts drawn: "" for the overview."""
        self.page.goto(f"{run.path}/{part}".rstrip("/"))
        self.page.wait_for_selector("#grid[data-ready]", state="attached")
        return self

    def too_wide(self) -> dict[int, int]:
        """By how many pixels the page is wider than the window, at each of `WIDTHS` where it is."""
        page = self.page
        before = page.viewport_size
        assert before
        found: dict[int, int] = {}
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": before["height"]})
            found[width] = page.evaluate(OVERFLOW)
        page.set_viewport_size(before)
        return {width: overflow for width, overflow in found.items() if overflow > 0}

    def until(self, done: Callable[[], Any], what: str) -> Any:
        """Let the page live until `done()` gives something true, and return that."""
        for _ in range(WAIT_MS // 100):
            if found := done():
                return found
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{what}: not within {WAIT_MS} ms")

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element has the text."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def status(self, text: str) -> None:
        self.shows("#stream", text)

    def chart(self, chart: str) -> None:
        """Scroll to a chart and wait until it is drawn: only what is on screen is."""
        self.page.wait_for_selector("#grid[data-ready]", state="attached")
        self.page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#chart-{chart}[data-drawn]", state="attached")

    def plotted(self, chart: str, series: str) -> list[list[float]]:
        """What ECharts draws of a series: [x, value], without gaps."""
        self.chart(chart)
        drawn = """async ([chart, series]) => {
            const address = document.getElementById("job-script").dataset.echarts;
            const echarts = await import(address);
            const plot = echarts.getInstanceByDom(document.querySelector(`#chart-${chart} .plot`));
            const found = plot?.getOption().series.find((one) => one.id === series);
            return (found?.data ?? []).filter((point) => point[1] !== null);
        }"""
        points: list[list[float]] = self.page.evaluate(drawn, [chart, series])
        return points

    def wait_for_points(self, chart: str, series: str, count: int) -> list[list[float]]:
        """The drawn points, once there are at least `count`."""
        self.until(lambda: len(self.plotted(chart, series)) >= count, f"{count} points of {series}")
        return self.plotted(chart, series)

    def table(self, chart: str) -> list[list[str]]:
        """The rows of a chart's table, which must be open."""
        self.chart(chart)
        rows: list[list[str]] = self.page.locator(f"#chart-{chart} .data tbody tr").evaluate_all(
            "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        return rows


class Tabs:
    """Opens signed-in pages."""

    def __init__(self, chromium: "Browser", service: Service) -> None:
        self._chromium = chromium
        self._service = service
        self._contexts: list[BrowserContext] = []

    def stranger(self, **options: Any) -> Tab:
        settings = {"viewport": {"width": 1440, "height": 900}} | options
        context = self._chromium.new_context(base_url=self._service.url, **settings)
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        tab = Tab(page)
        page.on(
            "console", lambda said: said.type in ("error", "warning") and tab.complaints.append(said.text)
        )
        page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        page.on("dialog", lambda box: tab.complaints.append(f"dialog: {box.message}") or box.dismiss())
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) =>"
            " console.error('policy: ' + event.violatedDirective + ' ' + event.blockedURI));"
        )
        return tab

    def open(self, **options: Any) -> Tab:
        tab = self.stranger(**options)
        answer = tab.page.context.request.post("/v1/sessions", data={"key": ADMIN_KEY})
        assert answer.status == 201
        return tab

    def close(self) -> None:
        for context in self._contexts:
            context.close()
