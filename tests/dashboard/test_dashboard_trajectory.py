"""The page of one trajectory: its numbers, its tokens in colour, and what it says where there are none."""

import math
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from dashboard.columns import columns
from dashboard.token_view import EDGES, Colouring, legend, share, tokens_of
from powermean.contracts.rollout import VersionSpan
from powermean.contracts.token_records import RecordedTokens, StepFacts, TrajectoryTokens, UpdateTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryRow, TrajectoryUpdate
from tests.support.fake_api import SPEC, FakeApi, FakeJob
from tests.support.html_text import Element, parse

HOSTILE = "<script>alert(1)</script>"
SPEC_OF_PAIRS = SPEC | {"rollout": {"group_size": 2}}
PIECES = (" 4", "\n", HOSTILE, "")
LOG_RATIOS = (0.0, -0.5, 0.8, 0.05)
WEIGHTS = (0.25, 0.1, 0.6, 0.05)


def record(pieces: tuple[str, ...] = PIECES, **changes: Any) -> TrajectoryTokens:
    values: dict[str, Any] = {
        "index": 1,
        "token_ids": tuple(range(100, 100 + len(pieces))),
        "pieces": pieces,
        "sampler_log_probs": (-0.5,) * len(pieces),
        "old_log_probs": (-0.51,) * len(pieces),
        "updates": (
            UpdateTokens(update=1, log_ratio=(0.0,) * 4, weight=(0.25,) * 4, clipped=(False,) * 4),
            UpdateTokens(update=3, log_ratio=LOG_RATIOS, weight=WEIGHTS, clipped=(False, False, True, False)),
        ),
    }
    return TrajectoryTokens(**(values | changes))


def trajectory(index: int, **changes: Any) -> Trajectory:
    values: dict[str, Any] = {
        "index": index,
        "group": index // 2,
        "problem": "3+4",
        "reward": float(index % 2),
        "advantage": 0.7 if index % 2 else -0.7,
        "length": 4,
        "truncated": False,
        "prompt": "3 + 4 =",
        "completion": " 4\n",
        "answer": "7",
        "updates": (
            TrajectoryUpdate(update=1, epoch=0, minibatch=1, p_reason="equal ratios"),
            TrajectoryUpdate(
                update=3, epoch=1, minibatch=1, p=0.875, ess=0.97, ess_at_1=0.96, ess_target=0.971,
                clip_fraction=0.25, clip_fraction_low=0.0, clip_fraction_high=0.25, clip_fraction_outside=0.5,
                ratio_min=0.6, ratio_mean=1.1, ratio_max=2.2, ratio_clipped_min=0.6, ratio_clipped_mean=1.0,
                ratio_clipped_max=1.2, loss=-0.71,
            ),
        ),
    }  # fmt: skip
    return Trajectory(**(values | changes))


def with_tokens(api: FakeApi, tokens: TrajectoryTokens, **changes: Any) -> FakeJob:
    job = api.add_job(spec=SPEC_OF_PAIRS)
    items = [trajectory(0), trajectory(1, has_tokens=True, **changes), trajectory(2), trajectory(3)]
    job.trajectories[5] = items
    facts = StepFacts(step=5, progress=0, mean_reward=0.5, reward_std=0.5, max_new_tokens=8, updates=())
    job.tokens[5, 1] = RecordedTokens(facts=facts, tokens=tokens)
    return job


def opened(browser: TestClient, path: str = "1", status: int = 200) -> Element:
    answer = browser.get(f"/jobs/job-a/steps/5/trajectories/{path}")
    assert answer.status_code == status, answer.text
    return parse(answer.text)


def spans(page: Element) -> list[Element]:
    box = next(pre for pre in page.all("pre") if "data-tokens" in pre.attributes)
    return [child for child in box.children if isinstance(child, Element)]


def test_the_last_update_colours_by_weight(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    page = opened(browser)
    shown = spans(page)
    assert [token.text for token in shown] == [" 4", "\n", HOSTILE, ""]  # copying gives the completion
    # T * W: 1, 0.4, 2.4, 0.2
    assert [token.attributes["class"] for token in shown] == ["w4", "w0", "w8 clipped", "w0"]
    assert shown[2].attributes["title"] == (
        "token 2 · id 102 · log-ratio +0.8000 · ratio 2.226 · W 0.6000 · 2.400 × uniform"
        " · clipped: no gradient"
    )
    assert shown[1].one("i", class_="nl")
    assert shown[3].one("i", class_="part")
    assert "1 of 4 tokens carry half of the gradient" in page.one("p", class_="summary").words
    assert "the clip removes the gradient of 1, which have 60.0 % of the weight" in page.text


def test_colours_and_updates_are_links(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    page = opened(browser, "1?by=log-ratio")
    assert [token.attributes["class"] for token in spans(page)] == ["x4", "x1", "x8 clipped", "x5"]
    links = {link.words: link.attributes["href"] for link in page.one("section", id="tokens").all("a")}
    assert links == {"token weight W": "?by=weight&update=3", "1": "?by=log-ratio&update=1"}
    first = opened(browser, "1?by=weight&update=1")
    assert {token.attributes["class"] for token in spans(first)} == {"w4"}
    assert first.one("section", id="updates").one("a").attributes["href"] == "?by=weight&update=3#tokens"


def test_the_legend_tells_numbers(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    steps = [item.words for item in opened(browser).one("figure").all("li")]
    assert steps == [
        "< 0.5 2", "0.5 to 0.8 0", "0.8 to 0.9 0", "0.9 to 0.97 0", "0.97 to 1.03 1", "1.03 to 1.1 0",
        "1.1 to 1.25 0", "1.25 to 2 0", "≥ 2 1", "clipped: no gradient 1",
    ]  # fmt: skip
    steps = [item.words for item in opened(browser, "1?by=log-ratio").one("figure").all("li")]
    assert steps[1] == "−0.7 to −0.25 1"
    assert steps[5] == "+0.03 to +0.1 1"


def test_the_table_has_every_token(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    rows = opened(browser).one("table", class_="token-table").one("tbody").all("tr")
    assert [[cell.words for cell in row.all("td")] for row in rows] == [
        ["4", "100", "0", "1", "0.2500", "1", "", "-0.5100", "-0.5000"],
        ["", "101", "−0.5000", "0.6065", "0.1000", "0.4000", "", "-0.5100", "-0.5000"],
        [HOSTILE, "102", "+0.8000", "2.226", "0.6000", "2.400", "clipped", "-0.5100", "-0.5000"],
        ["", "103", "+0.0500", "1.051", "0.0500", "0.2000", "", "-0.5100", "-0.5000"],
    ]


def test_what_is_known_of_the_trajectory(browser: TestClient, api: FakeApi) -> None:
    versions = (VersionSpan(version=3, start=0, end=2), VersionSpan(version=4, start=2, end=4))
    with_tokens(
        api,
        record(),
        truncated=True,
        entropy=0.4,
        sampling_kl=0.001,
        reward_parts={"grade": 1.0, "overlong": -0.25},
        weight_versions=versions,
    )
    page = opened(browser)
    facts = {
        entry.one("dt").words: entry.one("dd").words for entry in page.one("dl", class_="facts").all("div")
    }
    assert facts == {
        "Reward": "1 grade +1, overlong −0.2500",
        "Advantage": "+0.7000",
        "Length": "4 tokens cut off by max_new_tokens",
        "Entropy": "0.4000 nats",
        "KL(rollout ‖ trainer)": "0.0010 nats",
        "Weights": "v3: 0–1, v4: 2–3",
        "Answer": "7",
    }
    headings = [cell.words for cell in page.one("table", class_="updates").one("thead").all("th")]
    assert headings[:4] == ["Update", "Epoch", "Minibatch", "p"]
    assert headings[4:] == [column.title for column in columns(TrajectoryUpdate)]
    first, second = page.one("table", class_="updates").one("tbody").all("tr")
    assert [cell.words for cell in first.all("td")][:3] == ["0", "1", "equal ratios"]
    shown = dict(zip(headings[1:], [cell.words for cell in second.all("td")], strict=True))
    expected = {"Epoch": "1", "p": "0.8750", "N(1)": "0.9600", "Clipped": "25.0 %", "Outside": "50.0 %"}
    assert shown | expected | {"Clipped ratio, mean": "1", "Loss": "-0.7100"} == shown


def test_every_number_of_the_contract_is_on_the_page(browser: TestClient, api: FakeApi) -> None:
    numbers = columns(TrajectoryRow)
    assert {"entropy", "sampling_kl_truncated"} < {column.name for column in numbers}
    with_tokens(api, record(), **{column.name: 0.5 for column in numbers})
    facts = opened(browser).one("dl", class_="facts")
    shown = {entry.one("dt").words: entry.one("dd").words for entry in facts.all("div")}
    for column in numbers:
        assert shown[column.title] == f"0.5000 {column.unit}".strip()


def test_neighbours_and_the_group(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    page = opened(browser)
    base = "/jobs/job-a/steps/5/trajectories"
    assert page.one("a", rel="prev").attributes["href"] == f"{base}/0?by=weight"
    assert page.one("a", rel="next").attributes["href"] == f"{base}/2?by=weight"
    group = page.one("nav", aria_label="Group 0")
    assert [link.attributes["href"] for link in group.all("a")] == [
        "/jobs/job-a/steps/5/groups/0?by=weight",
        f"{base}/0?by=weight",
    ]
    assert page.one("nav", aria_label="Trajectories").all("a")[-1].attributes["href"] == (
        "/jobs/job-a/steps/5/replays"
    )
    assert "Replay" not in opened(browser, "0").one("nav", aria_label="Trajectories").words
    assert not opened(browser, "0").all("a", rel="prev")
    assert not opened(browser, "3").all("a", rel="next")
    rows = parse(browser.get("/jobs/job-a/steps/5").text).all("tbody")
    addresses = [{link.attributes["href"] for link in row.all("a")} for row in rows]
    assert addresses == [{f"{base}/{index}"} for index in range(4)]
    assert ["tokens in colour" in row.words for row in rows] == [False, True, False, False]


def test_without_tokens_the_page_names_the_field_that_records_them(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job(spec=SPEC_OF_PAIRS | {"record": {"tokens": "none"}})
    job.trajectories[5] = [trajectory(0), trajectory(1, length=0, updates=(), completion="")]
    page = opened(browser, "0")
    assert "record.tokens in the job's spec" in page.one("div", class_="empty").words
    assert "is none" in page.one("div", class_="empty").words
    assert page.one("table", class_="updates")
    assert "the completion is empty" in opened(browser, "1").one("div", class_="empty").words


def test_tokens_that_cannot_be_read_leave_the_rest(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record()).tokens.clear()
    page = opened(browser)
    assert "no tokens of 5/1 are left" in page.one("div", class_="empty").words
    assert page.one("table", class_="updates")


def test_an_advantage_of_zero_has_tokens_without_weights(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record(updates=()), advantage=0.0, updates=())
    page = opened(browser)
    assert "its advantage is 0" in page.text
    assert [token.attributes.get("class") for token in spans(page)] == [None] * 4
    assert not page.all("figure")


def test_model_text_stays_text(browser: TestClient, api: FakeApi) -> None:
    pieces = (HOSTILE, '"><img src=x onerror=alert(1)>', "\u202eabc", "שלום")
    with_tokens(api, record(pieces), problem=HOSTILE, prompt=HOSTILE, answer=HOSTILE, grader_error=HOSTILE)
    html = browser.get("/jobs/job-a/steps/5/trajectories/1").text
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "U+202E" in html  # a token that turns the page's direction is named, not obeyed
    assert " style=" not in html  # the pages' policy would drop it


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("9", 404, "There is no page"),
        ("x", 404, "There is no page"),
        ("1?by=colour", 400, "by must be one of weight, log-ratio"),
        ("1?update=2", 400, "update must be one that trained on the trajectory (1, 3), not 2"),
        ("1?update=x", 400, "update must be a whole number"),
    ],
)
def test_bad_addresses(browser: TestClient, api: FakeApi, path: str, status: int, said: str) -> None:
    with_tokens(api, record())
    assert said in opened(browser, path, status).text


def test_a_stranger_is_sent_to_sign_in(stranger: TestClient, api: FakeApi) -> None:
    with_tokens(api, record())
    answer = stranger.get("/jobs/job-a/steps/5/trajectories/1")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login?next=")


@pytest.mark.slow
def test_a_long_completion_is_quick(browser: TestClient, api: FakeApi) -> None:
    count = 3000
    update = UpdateTokens(
        update=0,
        log_ratio=tuple(math.sin(i) / 2 for i in range(count)),
        weight=(1 / count,) * count,
        clipped=tuple(i % 7 == 0 for i in range(count)),
    )
    with_tokens(api, record(tuple(f" word{i}" for i in range(count)), updates=(update,)))
    browser.get("/jobs/job-a/steps/5/trajectories/1")  # the template is compiled once
    started = time.process_time()
    answer = browser.get("/jobs/job-a/steps/5/trajectories/1?by=log-ratio")
    assert time.process_time() - started < 3  # about 0.2 s on an idle machine
    assert len(spans(parse(answer.text))) == count
    assert len(answer.content) < 2_000_000


@pytest.mark.parametrize("colouring", Colouring)
def test_a_step_of_a_scale_starts_at_its_edge(colouring: Colouring) -> None:
    edges = EDGES[colouring]
    count = len(edges)
    shown = [edge / count for edge in edges] if colouring is Colouring.WEIGHT else [0.1] * count
    update = UpdateTokens(update=0, log_ratio=edges, weight=tuple(shown), clipped=(False,) * count)
    tokens = tokens_of(record(("a",) * count, updates=()), update, colouring)
    assert [token.colour[1:] for token in tokens] == [str(step) for step in range(1, count + 1)]
    assert [step.count for step in legend(colouring, tokens)] == [0] + [1] * count


def test_share_of_nothing() -> None:
    assert share(tokens_of(record(), None)) is None
    clipped = UpdateTokens(update=0, log_ratio=LOG_RATIOS, weight=WEIGHTS, clipped=(True,) * 4)
    found = share(tokens_of(record(), clipped))
    assert found is not None
    assert (found.heaviest, found.active) == (0, 0)
    assert found.lost == pytest.approx(1)


def test_a_ratio_beyond_numbers_is_a_dash() -> None:
    update = UpdateTokens(update=0, log_ratio=(1e4, -1e4, 0, 0), weight=WEIGHTS, clipped=(True,) * 4)
    first, second, *_ = tokens_of(record(), update)
    assert "ratio – " in first.told
    assert second.ratio == 0


def test_what_was_not_graded_is_marked(browser: TestClient, api: FakeApi) -> None:
    with_tokens(api, record(), completion=" 4\n5", graded=3)
    page = parse(browser.get("/jobs/job-a/steps/5/trajectories/1").text)
    tokens = page.one("pre", data_tokens="weight").all("span")
    marked = ["ungraded" in token.attributes.get("class", "") for token in tokens]
    assert marked == [False, False, True, True]
    assert [token.attributes["title"].endswith("not graded") for token in tokens] == marked
    assert "Dotted: not graded" in page.words


def test_the_rest_of_a_text_is_marked_without_tokens_too(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.trajectories[2] = [trajectory(0, completion="4\n5", graded=1), trajectory(1, completion="7")]
    for path in ("/jobs/job-a/steps/2", "/jobs/job-a/steps/2/trajectories/0"):
        (rest,) = parse(browser.get(path).text).all("span", **{"class": "ungraded"})
        assert rest.text == "\n5"
