from typing import Any

from starlette.testclient import TestClient

from dashboard.steps import grouped, neighbours
from powermean.contracts.trajectories import Trajectory, TrajectoryUpdate
from tests.support.fake_api import FakeApi
from tests.support.html_text import parse

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def trajectory(index: int, **changes: Any) -> Trajectory:
    values: dict[str, Any] = {
        "index": index,
        "group": index // 2,
        "problem": "3+4",
        "reward": float(index % 2),
        "advantage": 0.7 if index % 2 else -0.7,
        "length": 3,
        "truncated": False,
        "prompt": "3 + 4 =",
        "completion": f" {index}\n",
        "answer": "7",
        "updates": (
            TrajectoryUpdate(
                update=1,
                p=0.875,
                ess=0.97,
                ess_target=0.971,
                clip_fraction=0.25,
                ratio_min=0.5,
                ratio_max=2.0,
            ),
            TrajectoryUpdate(update=3, p_reason="equal ratios", clip_fraction=0.0),
        ),
    }
    return Trajectory(**(values | changes))


def test_groups_show_what_each_update_made_of_them(browser: TestClient, api: FakeApi) -> None:
    api.add_job().trajectories[5] = [trajectory(0), trajectory(1), trajectory(2, reward=1.0), trajectory(3)]
    page = parse(browser.get("/jobs/job-a/steps/5").text)
    groups = page.all("article")
    assert len(groups) == 2
    assert "mean reward 0.5000" in groups[0].words
    assert "equal rewards" not in groups[0].words
    assert "equal rewards" in groups[1].words
    rows = groups[0].all("tbody")[1].all("tr")
    assert [cell.words for cell in rows[0].all("td")] == [
        "1", "+0.7000", "3", "1", "–", "–", "1", "0.8750", "0.9700", "0.9710", "25.0 %", "0.5000 … 2",
    ]  # fmt: skip
    assert [cell.words for cell in rows[1].all("td")] == ["3", "equal ratios", "0.0 %", "–"]
    assert groups[0].all("pre")[0].text == "3 + 4 ="


def test_model_text_is_escaped_and_its_white_space_kept(browser: TestClient, api: FakeApi) -> None:
    text = f"  {HOSTILE}\n\tend "
    api.add_job().trajectories[1] = [
        trajectory(0, prompt=HOSTILE, completion=text, answer=HOSTILE, problem=HOSTILE, grader_error=HOSTILE),
        trajectory(1, completion=HOSTILE * 50),
    ]
    for sort in ("index", "-reward"):
        html = browser.get(f"/jobs/job-a/steps/1?sort={sort}").text
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert text in [pre.text for pre in parse(html).all("pre")]
        assert "2,650 characters" in html  # folded


def test_texts_that_were_not_recorded(browser: TestClient, api: FakeApi) -> None:
    api.add_job().trajectories[1] = [trajectory(0, prompt=None, completion=None, answer=None, updates=())]
    page = browser.get("/jobs/job-a/steps/1").text
    assert "text not recorded" in page
    assert "in no update" in page


def test_steps_can_be_walked(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    for step in (2, 4, 7):
        job.trajectories[step] = [trajectory(0)]
    page = parse(browser.get("/jobs/job-a/steps/4?sort=-reward").text)
    assert page.one("a", rel="prev").attributes["href"] == "/jobs/job-a/steps/2?sort=-reward"
    assert page.one("a", rel="next").attributes["href"] == "/jobs/job-a/steps/7?sort=-reward"
    assert browser.get("/jobs/job-a/steps/latest").headers["location"] == "/jobs/job-a/steps/7"
    missing = browser.get("/jobs/job-a/steps/3")
    assert missing.status_code == 404
    assert "No trajectories of step 3." in missing.text
    assert "Recorded steps: 2 to 7" in missing.text


def test_no_trajectories_yet(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    page = browser.get("/jobs/job-a/steps/latest")
    assert page.status_code == 200
    assert "No trajectories yet." in page.text


def test_sorting_and_pages(browser: TestClient, api: FakeApi) -> None:
    api.add_job().trajectories[1] = [trajectory(i, reward=i / 100, group=i) for i in range(70)]
    page = parse(browser.get("/jobs/job-a/steps/1?sort=-reward").text)
    assert page.all("tbody")[0].attributes["id"] == "t69"
    assert "1–64 of 70" in page.one("nav", aria_label="Pages").words
    rest = parse(browser.get("/jobs/job-a/steps/1?sort=-reward&offset=64").text)
    assert [body.attributes["id"] for body in rest.all("tbody")] == ["t5", "t4", "t3", "t2", "t1", "t0"]


def test_bad_addresses_name_the_parameter(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    for query, said in (
        ("sort=colour", "sort must be one of"),
        ("offset=-1", "offset must be"),
        ("offset=x", "offset must be"),
    ):
        page = browser.get(f"/jobs/job-a/steps/1?{query}")
        assert page.status_code == 400
        assert said in page.text


def test_neighbours() -> None:
    assert neighbours((2, 4, 7), 4) == (2, 7)
    assert neighbours((2, 4, 7), 2) == (None, 4)
    assert neighbours((), 3) == (None, None)


def test_grouped_keeps_the_order() -> None:
    found = grouped((trajectory(2), trajectory(3), trajectory(0)))
    assert [(group.number, len(group.items)) for group in found] == [(1, 2), (0, 1)]
