import json

import pytest
from starlette.testclient import TestClient

from dashboard import submit
from dashboard.problems import said_once
from powermean.contracts.api import ErrorBody, FieldError
from powermean.spec_yaml import SpecText, read_spec
from tests.support.fake_api import SPEC, FakeApi
from tests.support.html_text import parse


def test_the_form_starts_from_an_example(browser: TestClient) -> None:
    page = parse(browser.get("/new").text)
    assert "name: arithmetic-smollm2" in page.one("textarea").text
    assert "prompts_per_step" in page.one("aside").text


def test_another_jobs_spec_can_be_the_start(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-a", {**SPEC, "algorithm": {"name": "gmpo"}})
    text = parse(browser.get("/new?from=job-a").text).one("textarea").text
    assert "name: gmpo" in text
    assert "max_restarts" not in text  # as it comes by itself


def test_a_copy_keeps_comments_and_explicit_values(browser: TestClient, api: FakeApi) -> None:
    text = (
        "# second try\nname: tiny\nmodel: {name: a/b}\ndata: {kind: arithmetic}\n"
        "training: {steps: 3}  # short\nmax_restarts: 3\n"
    )
    form = {"spec": text, "key": "k"}
    job = browser.post("/new", data=form).headers["location"].rpartition("/")[2]
    assert parse(browser.get(f"/new?from={job}").text).one("textarea").text.lstrip("\n") == text


def test_a_spec_becomes_a_job_once(browser: TestClient, api: FakeApi) -> None:
    key = parse(browser.get("/new").text).one("input", name="key").attributes["value"]
    form = {"spec": json.dumps(SPEC), "key": key}
    first, again = browser.post("/new", data=form), browser.post("/new", data=form)
    assert first.status_code == again.status_code == 303
    assert first.headers["location"] == again.headers["location"] == "/jobs/job-new1"
    assert list(api.jobs) == ["job-new1"]


def test_wrong_fields_are_named_and_the_text_is_kept(browser: TestClient, api: FakeApi) -> None:
    text = "name: <b>x</b>\nmodel: {name: a/b}\ndata: {kind: arithmetic}\ntraining: {steps: 0}\ncolour: red\n"
    answer = browser.post("/new", data={"spec": text, "key": "k"})
    assert answer.status_code == 422
    page = parse(answer.text)
    assert page.one("textarea").text.lstrip("\n") == text
    named = [code.text for code in page.one("ul", **{"class": "fields"}).all("code")]
    assert named == ["training.steps", "colour"]
    said = [item.words for item in page.one("ul", **{"class": "fields"}).all("li")]
    assert said[0].startswith("training.steps line 4: ")
    assert said[1].startswith("colour line 5: ")
    alert = page.one("div", role="alert").words
    assert alert.startswith("2 fields are wrong:")
    assert alert.count("training.steps") == 1
    assert "Mend it." in alert
    assert page.one("input", name="key").attributes["value"] != "k"
    assert api.jobs == {}


@pytest.mark.parametrize(
    ("message", "fields", "head"),
    [
        ("a: no", ["a"], "One field is wrong:"),
        ("a: no (and 1 more)", ["a", "b"], "2 fields are wrong:"),
        ("a: no (and 99 more)", ["a", "b"], "Many fields are wrong; the first 2:"),
        ("the report was not stored", ["a"], "the report was not stored"),
        ("no such job", [], "no such job"),
    ],
)
def test_a_head_repeats_none_of_its_fields(message: str, fields: list[str], head: str) -> None:
    found = tuple(FieldError(path=path, message="no") for path in fields)
    assert said_once(ErrorBody(code="invalid", message=message, fields=found)).message == head


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("name: a\n  b: [", "line 2, column 4: not YAML", "Look at indentation"),
        ("name: a\nseed: 010", "line 2, column 7: readers of YAML disagree on what 010 means", "in quotes"),
        ("a: &a [x]\nb: *a", "line 1, column 4: anchors and aliases", "Write the value out"),
    ],
)
def test_unreadable_text_says_the_place_and_what_to_do(
    browser: TestClient, text: str, place: str, remedy: str
) -> None:
    answer = browser.post("/new", data={"spec": text, "key": "k"})
    assert answer.status_code == 422
    said = parse(answer.text).one("div", role="alert").words
    assert place in said
    assert remedy in said


def test_many_wrong_fields_cost_one_reading(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[str] = []

    def counted(text: str) -> SpecText:
        readings.append(text)
        return read_spec(text)

    monkeypatch.setattr(submit, "read_spec", counted)
    text = "name: tiny\n" + "".join(f"k{number}: 1\n" for number in range(300))
    answer = browser.post("/new", data={"spec": text, "key": "k"})
    assert answer.status_code == 422
    assert "k299 line 301: " in parse(answer.text).one("ul", **{"class": "fields"}).words
    assert len(readings) == 1


def test_an_empty_spec_is_refused(browser: TestClient) -> None:
    assert "The spec is empty." in browser.post("/new", data={"spec": " ", "key": "k"}).text


def test_strangers_and_other_sites_submit_nothing(
    browser: TestClient, stranger: TestClient, api: FakeApi
) -> None:
    form = {"spec": json.dumps(SPEC), "key": "k"}
    assert browser.post("/new", data=form, headers={"Origin": "https://evil.example"}).status_code == 403
    stranger.cookies.clear()
    assert stranger.post("/new", data=form).headers["location"] == "/login"
    assert api.jobs == {}
