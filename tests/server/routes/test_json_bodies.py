"""Large bodies are read as json reads them, beside the loop on which heartbeats are answered."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidInputError
from server.routes import json_bodies, metrics
from server.routes.json_bodies import LARGE, in_pieces, parse, parse_with
from tests.support.live_server import listening
from tests.support.reports import trajectory
from tests.support.service_driver import ServiceDriver

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def outcome(loads: object, text: str) -> object:
    """What was read (NaN equal to itself), or where it went wrong."""
    try:
        return json.dumps(loads(text))  # type: ignore[operator]
    except json.JSONDecodeError as error:
        return error.pos


def parsed(reader: Callable[[bytes], object], text: str) -> object:
    """What was read, or the error; text that is no UTF-8 stays as it is."""
    try:
        return json.dumps(reader(text.encode(errors="surrogatepass")))
    except (json.JSONDecodeError, InvalidInputError) as error:
        return repr(error)


@given(value=VALUES, indent=st.none() | st.integers(0, 2))
def test_a_document_is_the_same_in_pieces(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert json.dumps(in_pieces(text)) == json.dumps(value)


@given(
    text=VALUES.map(json.dumps)
    | st.text(st.sampled_from('{}[]:,"ab01-.e \n\ttrue\\\ufeff\ud800'), max_size=16)
)
def test_the_fast_reader_reads_as_the_one_whose_errors_say_more(text: str) -> None:
    for document in (text, "\ufeff" + text, f'[{text}, "\\ud800", 1e999]', "[" * 300 + text + "]" * 300):
        assert parsed(parse, document) == parsed(partial(parse_with, json.loads), document), document


@given(st.text(st.sampled_from('{}[]:,"ab01-.e \\n\tntrue\\'), max_size=16))
def test_what_is_no_json_is_refused_where_json_refuses_it(text: str) -> None:
    for document in (text, '{"a":[' + text, '{"a": [1, ' + text + "]}", '{"a":1' + text, "{" + text + "}"):
        assert outcome(in_pieces, document) == outcome(json.loads, document), document


@pytest.fixture
def kind() -> str:
    return "sqlite"


UPDATES = [{"update": number, "p": 0.9, "ess": 0.97, "clip_fraction": 0.25} for number in range(16)]


@pytest.mark.slow
def test_heartbeats_are_answered_while_a_large_report_is_read(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the loop, none would be between the first byte that is parsed and the last row that is checked."""
    attempt = service.running()
    rows = [trajectory(index, 1.0) | {"updates": UPDATES} for index in range(6_000)]
    body = json.dumps({"step": 1, "rows": rows})
    assert len(body) > 5 * LARGE
    begins, ends = threading.Event(), threading.Event()
    headers = {"Authorization": f"Bearer {attempt.token}", "Content-Type": "application/json"}
    with (
        listening(service.app) as url,
        httpx.Client(base_url=f"{url}/v1/attempts/{attempt.id}", headers=headers, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.post("/heartbeat", json={"phase": "x"}).status_code == 200
        monkeypatch.setattr(json_bodies, "parse_with", told(begins, json_bodies.parse_with))
        monkeypatch.setattr(metrics, "packed_rows", told(ends, metrics.packed_rows))
        report = pool.submit(client.post, "/trajectories", content=body)
        assert begins.wait(60)
        answered = 0
        while client.post("/heartbeat", json={"phase": "x"}).status_code == 200 and not ends.is_set():
            answered += 1
        assert report.result(60).status_code == 204
    assert answered >= 3


def told(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which sets the event first."""

    def telling(*given: Any) -> Any:
        event.set()
        return function(*given)

    return telling
