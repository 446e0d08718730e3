"""A group's page: the tokens of its completions, one below the other."""

import pytest
from starlette.testclient import TestClient

from powermean.contracts.api import FieldError
from powermean.contracts.token_records import UpdateTokens
from tests.dashboard.test_dashboard_trajectory import HOSTILE, record, trajectory, with_tokens
from tests.support.fake_api import FakeApi
from tests.support.html_text import Element, parse


def opened(browser: TestClient, path: str = "0", status: int = 200) -> Element:
    answer = browser.get(f"/jobs/job-a/steps/5/groups/{path}")
    assert answer.status_code == status, answer.text
    assert "<script>alert" not in answer.text
    return parse(answer.text)


def test_completions_stand_below_each_other(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record(), prompt=HOSTILE)
    page = opened(browser)
    plain, coloured = page.all("article")
    assert "tokens not recorded" in plain.one("header").words
    assert plain.one("pre").text == " 4\n"
    assert "reward 1 advantage +0.7000 p 0.8750" in coloured.one("header").words
    assert "1 of 4 tokens carry half of the gradient" in coloured.one("header").words
    assert [t.attributes["class"] for t in coloured.one("pre").all("span")] == [
        "w4",
        "w0",
        "w8 clipped",
        "w0",
    ]
    assert coloured.one("h3").one("a").attributes["href"] == ("/jobs/job-a/steps/5/trajectories/1?by=weight")
    assert page.one("a", rel="next").attributes["href"] == "/jobs/job-a/steps/5/groups/1?by=weight"
    assert not opened(browser, "1").all("a", rel="next")


def test_an_update_that_left_one_out(browser: TestClient, api: FakeApi) -> None:
    job = with_tokens(api, record())
    early = UpdateTokens(update=0, log_ratio=(0.0,) * 4, weight=(0.25,) * 4, clipped=(False,) * 4)
    job.trajectories[5][0] = trajectory(0, has_tokens=True)
    other = record(index=0, updates=(early,))
    job.tokens[5, 0] = job.tokens[5, 1].model_copy(update={"tokens": other})
    first, second = opened(browser).all("article")
    assert "not in this update" in first.one("header").words
    assert [t.attributes.get("class") for t in first.one("pre").all("span")] == [None] * 4
    assert "carry half" in second.one("header").words
    page = opened(browser, "0?update=0&by=log-ratio")
    assert [t.attributes["class"] for t in page.all("article")[0].one("pre").all("span")] == ["x4"] * 4
    links = [
        link.words for link in page.one("section", id="tokens").one("span", aria_label="Update").all("a")
    ]
    assert links == ["1", "3"]


def test_a_group_without_tokens_says_which_field_records_them(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    assert "record.tokens" in opened(browser, "1").one("p", class_="hint").words


def test_completions_of_an_unknown_group_size_are_not_put_together(browser: TestClient, api: FakeApi) -> None:
    job = with_tokens(api, record())
    refused = FieldError(path="rollout.group_size", message="too large")
    job.job = job.job.model_copy(update={"spec_refused": (refused,)})
    for path in ("groups/0", "trajectories/1"):
        answer = browser.get(f"/jobs/job-a/steps/5/{path}")
        assert answer.status_code == 409
        assert "rollout.group_size: too large" in parse(answer.text).one("main").words
    charts = browser.get("/jobs/job-a/charts").text
    assert "can't read what charts need" in parse(charts).one("section", id="charts").words
    assert "job-data" not in charts
    newer = FieldError(path="algorithm.newer", message="there is no such field")
    job.job = job.job.model_copy(update={"spec_refused": (newer,)})
    assert "job-data" in browser.get("/jobs/job-a/charts").text


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("2", 404, "There is no page"),
        ("x", 404, "There is no page"),
        ("0?by=colour", 400, "by must be one of"),
        ("0?update=2", 400, "update must be one that trained on the group (1, 3), not 2"),
    ],
)
def test_bad_addresses(browser: TestClient, api: FakeApi, path: str, status: int, said: str) -> None:
    with_tokens(api, record())
    assert said in opened(browser, path, status).text
