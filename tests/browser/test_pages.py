"""The other pages in a real browser: themes, phones, signing in, hostile text, life without scripts."""

import gzip
import json
import re
from typing import Any

import pytest

from powermean.artefacts import ArtefactStore
from tests.support.browser_tabs import Tabs
from tests.support.real_service import ADMIN_KEY, Run, Service

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\n\t done"
PHONE = {"viewport": {"width": 390, "height": 844}}


def record_trajectories(service: Service, run: Run, step: int) -> None:
    """A step with a group of two, whose texts try to be more than text."""
    texts = [
        {"index": i, "prompt": HOSTILE, "completion": f"{i} {HOSTILE}", "answer": HOSTILE} for i in range(2)
    ]
    segment = gzip.compress("\n".join(map(json.dumps, texts)).encode())
    store = ArtefactStore(service.settings.artefacts_url)
    ref = store.put_bytes(f"jobs/{run.job_id}/texts", f"{step}.jsonl.gz", segment)
    updates = [
        {"update": 0, "p": 1.0, "ess": 0.99, "clip_fraction": 0.0},
        {"update": 2, "p": 0.75, "ess": 0.95},
    ]
    rows: list[dict[str, Any]] = [
        {
            "index": i,
            "group": 0,
            "problem": HOSTILE[:50],
            "reward": float(i),
            "advantage": i - 0.5,
            "length": 9,
            "truncated": i == 0,
            "updates": updates,
        }
        for i in range(2)
    ]
    run.post("trajectories", {"step": step, "rows": rows, "texts": ref.model_dump()})


@pytest.fixture
def run(service: Service) -> Run:
    """A job with some history and trajectories."""
    running = service.running()
    running.step(*range(5))
    running.checkpoint(4)
    record_trajectories(service, running, 4)
    return running


def test_every_page_is_quiet_and_fits_a_phone(run: Run, tabs: Tabs) -> None:
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE):
        tab = tabs.open(**options)
        for path in (
            "/",
            run.path,
            f"{run.path}/charts",
            f"{run.path}/system",
            f"{run.path}/spec",
            f"{run.path}/steps/4",
            f"{run.path}/log",
            f"{run.path}/cancel",
            "/new",
            "/cluster",
        ):
            answer = tab.page.goto(path)
            assert answer
            assert answer.status == 200, path
            assert tab.page.locator("h1").count() == 1, path
            assert tab.too_wide() == {}, path
            if path == run.path:
                tab.wait_for_points("reward", "reward", 4)
        assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_it_is_chosen(run: Run, tabs: Tabs, scheme: str) -> None:
    tab = tabs.open(color_scheme=scheme).open(run)

    def background() -> int:
        colour: str = tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    dark = scheme == "dark"
    assert (background() < 384) is dark
    tab.page.get_by_role("button", name="Switch to the").click()
    assert (background() < 384) is not dark
    tab.open(run)
    assert (background() < 384) is not dark
    tab.wait_for_points("reward", "reward", 4)
    assert tab.page.screenshot().startswith(b"\x89PNG")
    assert tab.complaints == []


def test_a_link_from_the_terminal_signs_in(service: Service, run: Run, tabs: Tabs) -> None:
    code = service.person.post("/v1/login-codes").raise_for_status().json()["code"]
    tab = tabs.stranger()
    tab.page.goto(f"/login/{code}")
    tab.page.wait_for_url("**/")
    tab.page.get_by_role("link", name="adding up").click()
    tab.page.wait_for_selector("#grid[data-ready]")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.wait_for_url("**/login")
    tab.page.goto(run.path)
    assert tab.page.url.endswith(f"/login?next={run.path}")
    tab.page.get_by_label("API key").fill(ADMIN_KEY)
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url(f"**{run.path}")
    assert tab.complaints == []


def test_a_job_is_submitted_after_its_mistakes_are_shown(service: Service, tabs: Tabs) -> None:
    tab = tabs.open()
    tab.page.goto("/new")
    editor = tab.page.get_by_label("Spec, as YAML or JSON")
    text = editor.input_value()
    editor.fill(text.replace("steps: 20", "steps: 0").replace("group_size: 8", "group_size: 1"))
    tab.page.get_by_role("button", name="Submit").click()
    tab.page.locator("ul.fields code").nth(1).wait_for()
    named = tab.page.locator("ul.fields code").all_inner_texts()
    assert sorted(named) == ["rollout.group_size", "training.steps"]
    assert "steps: 0" in editor.input_value()
    editor.fill(text)
    service.stop()
    tab.page.get_by_role("button", name="Submit").click()
    tab.shows("#unsent", "Your entries are kept")
    assert editor.input_value() == text
    service.start()
    tab.shows("#unsent", "The server answers again")
    tab.page.get_by_role("button", name="Submit").click()
    tab.page.wait_for_url("**/jobs/job-*")
    tab.shows("h1", "arithmetic-smollm2")
    jobs = service.person.get("/v1/jobs").json()["items"]
    assert len(jobs) == 1


def test_model_text_stays_text(run: Run, tabs: Tabs) -> None:
    tab = tabs.open()
    for sort in ("index", "p"):
        tab.page.goto(f"{run.path}/steps/latest")
        tab.page.goto(f"{run.path}/steps/4?sort={sort}")
        shown = tab.page.locator("td.completion > pre.text").evaluate_all(
            "all => all.map((pre) => pre.textContent)"
        )
        assert sorted(shown) == [f"0 {HOSTILE}", f"1 {HOSTILE}"]
        assert tab.page.title().startswith("Step 4")
        assert tab.page.locator("main img").count() == 0
    tab.page.locator("a[aria-label], a", has_text="highest reward first").click()
    assert tab.page.locator("tbody").first.get_attribute("id") == "t1"
    assert tab.complaints == []


def test_without_scripts_the_numbers_are_there(run: Run, tabs: Tabs) -> None:
    tab = tabs.open(java_script_enabled=False)
    tab.page.goto(f"{run.path}/charts")
    tab.page.get_by_text("All numbers of the last step").last.click()
    values = tab.page.locator("#latest").inner_text()
    assert "p/mean" in values
    assert "0.9920" in values
    assert "Charts need scripts" in tab.page.locator("#charts").inner_text()
    tab.page.get_by_role("link", name="Cancel job").click()
    tab.page.get_by_role("button", name="Cancel the job").click()
    assert "cancelling" in tab.page.locator("#job-header").inner_text()


def test_a_job_is_paused_and_resumed_from_its_page_and_the_list(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(0, 1)
    tab = tabs.open()
    tab.page.goto(run.path)
    tab.page.get_by_role("button", name="Pause").click()
    tab.shows("#job-header", "pausing")
    tab.shows("#job-header", "frees its place: paused by administrator")
    run.checkpoint(1)
    run.post("finish", {"outcome": "checkpointed"})
    tab.shows("#job-header", "Paused by administrator.")
    tab.shows("#outcome", "ordered to stop")
    tab.page.goto("/?state=paused")
    tab.shows("table.jobs", "paused by administrator")
    tab.page.locator(f"#link-{run.job_id}").click()
    tab.page.get_by_role("button", name="Resume").click()
    tab.until(lambda: tab.page.get_by_role("button", name="Pause").count() == 1, "it can be paused again")
    assert tab.complaints == []
    service.report_node()
    run.claim(2)
    run.step(2)
    tab.shows("#job-header", "running")
    assert [step for step, _, _ in run.history("reward")] == [0, 1, 2]


def test_without_the_plotting_library_tables_follow(run: Run, tabs: Tabs) -> None:
    tab = tabs.open()
    tab.page.route("**/static/vendor/echarts.js*", lambda route: route.abort())
    tab.open(run)
    assert [row[0] for row in tab.table("reward")] == ["4", "3", "2", "1", "0"]
    run.step(5)
    tab.until(lambda: len(tab.table("reward")) == 6, "the new step's row")


def test_a_log_is_followed(service: Service, run: Run, tabs: Tabs) -> None:
    run.post("logs", {"offset": 0, "text": "step 1 <b>done</b>\n"})
    tab = tabs.open()
    tab.page.goto(f"{run.path}/log")
    tab.shows("pre.log", "step 1 <b>done</b>")
    run.post("logs", {"offset": 19, "text": "step 2 done\n"})
    tab.shows("pre.log", "step 2 done")
    assert tab.page.locator("pre.log").inner_text().count("step 1") == 1
    assert tab.complaints == []


def test_a_page_says_since_when_it_is_out_of_touch(service: Service, run: Run, tabs: Tabs) -> None:
    pages = [tabs.open(), tabs.open()]
    pages[0].page.goto("/")
    pages[1].open(run, part="")
    for tab in pages:
        tab.page.wait_for_selector("#connection", state="hidden")
        tab.page.evaluate("scrollTo(0, 10000)")
    service.stop()
    for tab in pages:
        notice = tab.page.locator("#connection")
        notice.wait_for()
        assert re.fullmatch(r"Not connected since \d\d:\d\d:\d\d\. .*", notice.inner_text())
        box = notice.bounding_box()
        assert box
        assert 0 <= box["y"] < 100  # in sight, however far one has scrolled
    service.start()
    for tab in pages:
        tab.page.wait_for_selector("#connection", state="hidden")


def test_the_end_of_a_job_is_told_where_it_was_asked_for(service: Service, run: Run, tabs: Tabs) -> None:
    asked, silent = tabs.open(permissions=["notifications"]), tabs.open(permissions=["notifications"])
    for tab in (asked, silent):
        tab.page.add_init_script(
            "window.told = []; const Real = Notification; window.Notification = class extends Real {"
            " constructor(text, options) { super(text, options); told.push(text); } };"
        )
        tab.open(run, part="")
        assert tab.page.title() == "Running 4/20 · adding up · powermean"
    asked.page.get_by_role("button", name="Notify me at the end").click()
    run.finish(4)
    for tab, told in ((asked, ["adding up: finished"]), (silent, [])):
        tab.until(lambda tab=tab: tab.page.title() == "Finished · adding up · powermean", "the title")
        assert tab.page.evaluate("told") == told


def test_a_help_panel_opens_at_its_button(run: Run, tabs: Tabs) -> None:
    tab = tabs.open().open(run)
    button = tab.page.get_by_role("button", name="What Reward shows")
    button.click()
    # Read in one go: charts above that are being drawn move both.
    boxes = """(button) => [button, document.getElementById("about-reward")].map((one) => {
        const { x, y, width, height } = one.getBoundingClientRect();
        return { x, y, width, height };
    })"""
    at, panel = button.evaluate(boxes)
    below, above = panel["y"] - (at["y"] + at["height"]), at["y"] - (panel["y"] + panel["height"])
    assert 0 <= max(below, above) < 20  # above it where there is no room below
    assert panel["x"] <= at["x"] <= panel["x"] + panel["width"]


def test_the_list_of_jobs_refreshes_itself(service: Service, run: Run, tabs: Tabs) -> None:
    tab = tabs.open()
    tab.page.goto("/")
    tab.shows("#jobs .progress", "4/20")
    link = tab.page.get_by_role("link", name="adding up")
    link.focus()
    run.step(5)
    tab.shows("#jobs .progress", "5/20")
    assert link.evaluate("(link) => link === document.activeElement")  # the keyboard's place is kept
    tab.page.get_by_label("State").select_option("failed")
    tab.shows("#jobs", "No job matches.")
    assert tab.complaints == []
