"""p and ESS by staleness on a job's page, and the staleness of single trajectories."""

import json

from starlette.testclient import TestClient

from powermean.contracts.rollout import VersionSpan
from tests.dashboard.test_dashboard_steps import trajectory
from tests.support.fake_api import SPEC, FakeApi, FakeJob
from tests.support.html_text import parse
from tests.support.sample_staleness import sample_staleness

STALE = {**SPEC, "rollout": {"max_staleness": 2}}
PART = "/jobs/job-a/part/staleness"


def stale_job(api: FakeApi, **rollout: object) -> FakeJob:
    """A job whose sampling may run ahead, with rows of staleness 0, 1 and 2."""
    job = api.add_job(spec={**STALE, "rollout": STALE["rollout"] | rollout})
    job.staleness = sample_staleness()
    return job


def test_the_panel_has_all_numbers_as_a_table(browser: TestClient, api: FakeApi) -> None:
    stale_job(api)
    page = parse(browser.get("/jobs/job-a/charts").text)
    section = page.one("section", id="staleness")
    assert "hidden" not in section.attributes
    assert "steps 3 to 9" in section.words
    rows = [row.words for row in section.one("table").one("tbody").all("tr")]
    assert rows == [
        "0 32 0 320 – 1 0.0 % 0.9000 0.8000 · 0.9000 · 1 0.9800 0.9500 0.0 % 0 1 –",
        "1 32 1 320 0.8500 0.9900 2.0 % 0.7000 0.6000 · 0.7000 · 0.8000 0.9600 0.9000 10.0 % 0.0100 1.100 –",
        "2 32 2 320 0.7500 0.9800 4.0 % 0.5000 0.4000 · 0.5000 · 0.6000 0.9400 0.8500 20.0 % 0.0200 1.200 –",
    ]
    data = json.loads(section.one("script", id="staleness-data").text)
    assert [row["staleness"] for row in data["rows"]] == [0, 1, 2]
    assert page.one("script", id="staleness-script").attributes["type"] == "module"


def test_it_says_where_staleness_shows(browser: TestClient, api: FakeApi) -> None:
    stale_job(api)
    assert "rollout.old_policy: sampler" in parse(browser.get(PART).text).one("p", class_="hint").words
    stale_job(api, old_policy="sampler")
    assert "old_policy" not in parse(browser.get(PART).text).one("p", class_="hint").words


def test_nothing_is_shown_until_something_is_stale(browser: TestClient, api: FakeApi) -> None:
    job = stale_job(api)
    job.staleness = sample_staleness(0)
    page = parse(browser.get("/jobs/job-a/charts").text)
    section = page.one("section", id="staleness")
    assert "hidden" in section.attributes
    assert section.attributes["hx-get"] == PART
    assert not section.words
    job.staleness = sample_staleness(0, 1)
    assert len(parse(browser.get(PART).text).one("tbody").all("tr")) == 2


def test_a_strictly_on_policy_job_has_no_panel(browser: TestClient, api: FakeApi) -> None:
    api.add_job().staleness = sample_staleness()
    assert not parse(browser.get("/jobs/job-a/charts").text).all("section", id="staleness")
    assert not browser.get(PART).text.strip()


def test_trajectories_say_their_staleness_and_weights(browser: TestClient, api: FakeApi) -> None:
    spans = (VersionSpan(version=2, start=0, end=1), VersionSpan(version=3, start=1, end=3))
    old = {"weight_version": 2, "weight_versions": spans, "staleness": 2, "importance_sampling_ratio": 1.25}
    old |= {"sequence_importance_sampling_ratio": 3.5, "applied_importance_sampling_ratio": 2.0}
    api.add_job().trajectories[5] = [trajectory(0, **old), trajectory(1, staleness=0, weight_version=4)]
    rows = parse(browser.get("/jobs/job-a/steps/5").text).all("tbody")
    assert [row.all("th")[0].words.replace("\xa0", " ") for row in rows] == ["0 staleness 2", "1"]
    facts = parse(browser.get("/jobs/job-a/steps/5/trajectories/0").text).one("dl", class_="facts").words
    assert "v2: 0–0, v3: 1–2 staleness 2" in facts
    assert "w, token mean1.250 w, sequence3.500 w, applied2" in facts
    fresh = parse(browser.get("/jobs/job-a/steps/5/trajectories/1").text).one("dl", class_="facts").words
    assert "v4 staleness 0" in fresh
    assert "applied" not in fresh
