"""Numbers for Prometheus, and the log of requests."""

import json
import logging
import sys

import pytest

from server.request_log import JsonFormatter, Sparing, request_id
from tests.support.reports import post_rows, row, trajectory


@pytest.fixture
def kind() -> str:
    """What is seen from outside is the same on every database."""
    return "sqlite"


def sample(service, name):
    """The value of one line of /metrics."""
    text = service.person.get("/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_numbers_for_prometheus(service):
    attempt = service.running()
    post_rows(attempt, row(1), row(2))
    attempt.post("trajectories", {"step": 1, "rows": [trajectory(0)]})
    assert sample(service, 'powermean_jobs{state="running"}') == 1
    assert sample(service, 'powermean_jobs{state="failed"}') == 0
    assert sample(service, "powermean_nodes_alive") == 1
    assert sample(service, "powermean_event_streams") == 0
    assert sample(service, 'powermean_ingested_rows_total{kind="metrics"}') == 2
    assert sample(service, 'powermean_ingested_rows_total{kind="trajectories"}') == 1
    route = 'method="POST",route="/v1/attempts/{attempt_id}/metrics",status="204"'
    assert sample(service, f"powermean_request_seconds_count{{{route}}}") == 1


def test_paths_that_are_no_route_make_one_series(service):
    for path in ("/v1/nope", "/v1/nope/2"):
        service.person.get(path)
    assert sample(service, 'powermean_request_seconds_count{method="GET",route="none",status="404"}') == 2


@pytest.mark.slow
def test_invented_methods_make_one_series(service):
    for number in range(50):
        assert service.person.request(f"M{number}", "/v1/jobs").status_code == 405
    assert 'method="M' not in service.person.get("/metrics").text
    series = 'powermean_request_seconds_count{method="other",route="/v1/jobs",status="405"}'
    assert sample(service, series) == 50


def test_warnings_of_a_kind_are_few_and_say_how_many_they_stand_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("server.request_log.time.monotonic", lambda: now[0])
    sparing = Sparing(most=3, window_s=60)

    def said(message, *args, level=logging.WARNING):
        record = logging.LogRecord("x", level, "f", 1, message, args, None)
        return record.getMessage() if sparing.filter(record) else None

    assert [said("refused %d", n) for n in range(5)] == ["refused 0", "refused 1", "refused 2", None, None]
    assert said("another") == "another"
    assert all(said("GET", level=logging.INFO) for _ in range(10))
    now[0] = 61.0
    assert said("refused %d", 5) == "refused 5 (2 more like it were left out)"
    assert said("refused %d", 6) == "refused 6"


def test_requests_are_logged_with_their_id(service, caplog):
    caplog.set_level(logging.INFO, logger="server.request_log")
    seen = []
    caplog.handler.addFilter(lambda record: seen.append(json.loads(JsonFormatter().format(record))) or True)
    answer = service.person.get("/v1/nodes")
    (line,) = [line for line in seen if line["logger"] == "server.request_log"]
    assert line["message"] == "GET /v1/nodes 200"
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == 200
    assert line["ms"] > 0
    assert request_id.get() is None


def test_an_exception_is_one_line_of_json():
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed %d", (3,), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "failed 3"
    assert "ValueError" in json.loads(text)["exception"]


def test_no_value_in_a_line_begins_another_or_reaches_a_terminal():
    name = "a\r\n\x1b[2J\x7f\x85\x9b2J\u2028\u202e\u2066"
    record = logging.makeLogRecord({"msg": "refused the worker on host %s", "args": (name,)})
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.replace("\x7f", "").isprintable()
    assert name in json.loads(line)["message"]
