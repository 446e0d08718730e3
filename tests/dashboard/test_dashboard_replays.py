"""A replay's form and its page: what came out, while it runs, and what went wrong."""

import json

from starlette.testclient import TestClient

from powermean.contracts.algorithms import Gmpo, Pmpo
from powermean.contracts.attempts import JobError
from powermean.contracts.replays import ReplayState
from tests.dashboard.test_dashboard_steps import trajectory
from tests.support.fake_api import FakeApi
from tests.support.html_text import parse
from tests.support.sample_replays import replay_result, sample_replay

HOSTILE = "<script>alert(1)</script>"
FORM = "/jobs/job-a/steps/5/replays"


def test_the_form_asks_and_goes_to_the_replay(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    api.replays["replay-1"] = sample_replay(ReplayState.WAITING)
    form = parse(browser.get(FORM).text).one("form", action=FORM)
    options = [option.words for option in form.one("select").all("option")]
    assert options[:3] == ["pmpo, as recorded", "pmpo", "grpo"]
    answer = browser.post(FORM, data={"algorithm": "grpo", "set": "clip=0.2 beta_name=x"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs/job-a/replays/replay-1")
    assert api.asked == [{"step": 5, "algorithm": "grpo", "set": {"clip": 0.2, "beta_name": "x"}}]
    browser.post(FORM, data={"algorithm": "", "set": ""})
    assert api.asked[-1] == {"step": 5, "algorithm": None, "set": {}}


def test_what_is_wrong_is_said_beside_the_form(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    answer = browser.post(FORM, data={"algorithm": "nonsense", "set": "clip=0.2"})
    page = parse(answer.text)
    assert answer.status_code == 422
    assert "no objective 'nonsense'" in page.one("div", role="alert").words
    assert page.one("input", name="set").attributes["value"] == "clip=0.2"
    answer = browser.post(FORM, data={"algorithm": "", "set": HOSTILE})
    assert answer.status_code == 422
    assert "is not field=value" in parse(answer.text).one("div", role="alert").words
    assert HOSTILE not in answer.text
    refused = browser.post(FORM, data={"set": ""}, headers={"Origin": "http://elsewhere"})
    assert refused.status_code == 403
    assert browser.get("/jobs/job-a/steps/x/replays").status_code == 404


def test_while_it_runs_the_page_refreshes_itself(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    api.replays["replay-1"] = sample_replay(ReplayState.WAITING, algorithm=Gmpo(clip_low=0.1))
    page = parse(browser.get("/jobs/job-a/replays/replay-1").text)
    assert page.one("input", name="set").attributes["value"] == "clip_low=0.1"
    assert page.one("option", selected="").words == "gmpo"
    assert page.one("meta", http_equiv="refresh").attributes["content"] == "2"
    assert "waiting for a node" in page.one("p", role="status").words


def test_the_result_is_a_table_by_update_and_one_by_trajectory(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    api.replays["replay-1"], api.results["replay-1"] = sample_replay(), replay_result()
    page = parse(browser.get("/jobs/job-a/replays/replay-1").text)
    assert not page.all("meta", http_equiv="refresh")
    assert page.one("h1").words == "Step 5: pmpo → grpo"
    assert "2 of 4 trajectories" in page.one("dl", class_="facts").words
    update = page.one("table", class_="replay-updates cards").one("tbody").words
    assert update == "1 2/4 0.2500 → 1 0.9000 → 0.8000 0.5000 → 0.2500 -0.0125 → -0.0200 0.7500 → 0"
    rows = page.one("table", class_="replay-trajectories cards").one("tbody").all("tr")
    assert [row.one("a").words for row in rows] == ["5", "3"]
    assert rows[0].one("a").attributes["href"] == "/jobs/job-a/steps/5/trajectories/5?update=1"
    assert rows[1].words == "3 1 -0.5000 – – – 0.5000"
    data = json.loads(page.one("script", id="replay-data").text)
    assert data == {"recorded": "pmpo", "replayed": "grpo", "points": [[0.25, 1.0, 5, 1]]}


def test_a_replay_of_the_recorded_objective_says_whether_it_reproduces(
    browser: TestClient, api: FakeApi
) -> None:
    api.add_job()
    for reproduces, words in ((True, "are reproduced"), (False, "are not reproduced")):
        result = replay_result(reproduces=reproduces)
        api.replays["replay-1"] = sample_replay(summary=result.summary)
        api.results["replay-1"] = result
        assert (
            words in parse(browser.get("/jobs/job-a/replays/replay-1").text).one("dl", class_="facts").words
        )


def test_a_default_is_not_called_recorded(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    for refused, ending in ((), ", as recorded"), ((JobError(code="spec_refused", message="wrong"),), "pmpo"):
        api.replays["replay-1"] = sample_replay(ReplayState.WAITING, algorithm=Pmpo(), refused=refused)
        assert parse(browser.get("/jobs/job-a/replays/replay-1").text).one("h1").words.endswith(ending)


def test_a_failure_is_shown_escaped_with_its_remedy(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    error = JobError(code="no_node", message=HOSTILE, remedy="Start one.")
    api.replays["replay-1"] = sample_replay(ReplayState.FAILED, error=error)
    answer = browser.get("/jobs/job-a/replays/replay-1")
    assert HOSTILE not in answer.text
    problem = parse(answer.text).one("div", role="alert").words
    assert HOSTILE in problem
    assert "Start one." in problem
    assert browser.get("/jobs/job-a/replays/none").status_code == 404


def test_the_step_page_offers_it_where_tokens_were_recorded(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.trajectories[5] = [trajectory(0, has_tokens=True)]
    job.trajectories[6] = [trajectory(0)]
    assert parse(browser.get("/jobs/job-a/steps/5").text).one("form", action=FORM)
    assert not parse(browser.get("/jobs/job-a/steps/6").text).all("form", class_="replay-form filters")
