"""Live events over a real connection: replayed, followed, resumed, without gap or double."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from powermean.contracts.metrics import WHOLE_STEP
from powermean.sse import read_events
from server.db.session import Changes
from server.metrics import stream as stream_module
from server.metrics.event_log import Frame, Page
from server.metrics.stream import BACKLOG, Subscription
from tests.support.live_server import listening, read, stream
from tests.support.real_service import until
from tests.support.reports import next_attempt, post_rows, row
from tests.support.service_driver import ADMIN_KEY, ServiceDriver


def values(events):
    """What a client knows after these events: (step, update, name) -> value, truncated by each rewind."""
    known = {}
    for event in events:
        if event.kind == "metrics":
            for item in event.data["rows"]:
                known[item["step"], item["update"], item["name"]] = item["value"]
        elif event.kind == "rewind":
            known = {key: value for key, value in known.items() if key[0] < event.data["from_step"]}
    return known


def history(service, job_id):
    """The same from the history."""
    answer = service.person.get(f"/v1/jobs/{job_id}/metrics", params={"max_points": 10_000}).json()
    return {
        (point["step"], point["update"], series["name"]): point["value"]
        for series in answer["series"]
        for point in series["points"]
    }


@pytest.mark.slow
def test_a_stream_replays_then_follows(service):
    attempt = service.running()
    job_id = attempt.claim.job_id
    post_rows(attempt, row(1))
    with listening(service.app) as url, stream(url, job_id, ADMIN_KEY) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = read_in_background(response, upto=service.job(job_id).seq + 2)
        for step in (2, 3):
            post_rows(attempt, row(step))
        found = events()
    assert [event.seq for event in found] == list(range(1, service.job(job_id).seq + 1))
    assert [key[0] for key in values(found)] == [1, 2, 3]


@pytest.mark.slow
def test_a_stream_that_is_cut_again_and_again_misses_and_repeats_nothing(service):
    """Connections are cut in the middle while an attempt reports, fails, and another takes over."""
    first = service.running()
    job_id = first.claim.job_id

    def is_last(event):
        return event.kind == "metrics" and event.data["rows"][0]["step"] == 20

    def run():
        for step in range(1, 20):
            post_rows(first, row(step, value=step / 2), row(step, "loss", -step, update=0))
        first.commit(7)
        second = next_attempt(service, first)
        for step in range(8, 21):
            post_rows(second, row(step, value=step / 4))
            time.sleep(0.02)

    found = []
    with listening(service.app) as url, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        while not (found and is_last(found[-1])):
            after = found[-1].seq if found else 0
            with stream(url, job_id, ADMIN_KEY, **{"Last-Event-ID": str(after)}) as response:
                for event in read_events(response.iter_lines()):
                    found.append(event)
                    if event.seq == after + 3 or is_last(event):
                        break
        running.result(10)
    assert [event.seq for event in found] == list(range(1, service.job(job_id).seq + 1))
    assert "rewind" in {event.kind for event in found}
    assert values(found) == history(service, job_id)


@pytest.mark.slow
def test_fifty_clients_get_the_same(service):
    attempt = service.running()
    job_id = attempt.claim.job_id
    last = service.job(job_id).seq + 20

    async def follow(url, start):
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=60)) as client:
            await asyncio.gather(*(one(client, url, start) for _ in range(50)))

    bodies = []

    async def one(client, url, start):
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with client.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers) as response:
            body = b""
            start.set()
            async for piece in response.aiter_bytes():
                body += piece
                if f"id: {last}\n".encode() in body and body.endswith(b"\n\n"):
                    break
            bodies.append(body)

    with listening(service.app) as url:
        start = threading.Event()
        clients = threading.Thread(target=lambda: asyncio.run(follow(url, start)))
        clients.start()
        assert start.wait(20)
        for step in range(1, 21):
            post_rows(attempt, row(step))
        clients.join(30)
    assert len(bodies) == 50
    assert len({body.replace(stream_module.KEEP_ALIVE, b"") for body in bodies}) == 1


@pytest.mark.slow
def test_the_stream_of_a_job_that_ended_ends_and_then_is_empty(service):
    attempt = service.running()
    job_id = attempt.claim.job_id
    attempt.finish("failed", error={"code": "bad", "message": "bad"})
    with listening(service.app) as url:
        with stream(url, job_id, ADMIN_KEY) as response:
            body = response.read()
        assert body.endswith(b"event: end\ndata: {}\n\n")
        assert b'"state":"failed"' in body
        last = str(service.job(job_id).seq)
        with stream(url, job_id, ADMIN_KEY, **{"Last-Event-ID": last}) as response:
            assert response.status_code == 204
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
            again = client.get(f"/v1/jobs/{job_id}/events", params={"after": last})
        assert again.content == stream_module.HELLO + stream_module.END


@pytest.mark.slow
def test_a_follower_is_told_of_the_end(service):
    attempt = service.running()
    with listening(service.app) as url, stream(url, attempt.claim.job_id, ADMIN_KEY) as response:
        pieces = response.iter_bytes()
        next(pieces)
        attempt.finish("failed", error={"code": "bad", "message": "bad"})
        assert b"".join(pieces).endswith(b"event: end\ndata: {}\n\n")


@pytest.mark.slow
def test_a_lost_wake_up_costs_a_poll(service, monkeypatch):
    """As when another server took the report and Redis is down."""
    attempt = service.running()
    monkeypatch.setattr(service.app.state.events, "_spread", lambda job_ids: None)
    last = service.job(attempt.claim.job_id).seq
    with listening(service.app) as url, stream(url, attempt.claim.job_id, ADMIN_KEY) as response:
        events = read_in_background(response, upto=last + 1)
        time.sleep(0.3)
        posted = time.monotonic()
        post_rows(attempt, row(1))
        assert events()[-1].seq == last + 1
        assert time.monotonic() - posted < 5 * stream_module.POLL_S


@pytest.mark.slow
def test_a_report_to_one_server_wakes_the_streams_of_another(settings, valkey_url, monkeypatch):
    monkeypatch.setattr(stream_module, "POLL_S", 1000.0)
    here, there = (ServiceDriver(settings.model_copy(update={"redis_url": valkey_url})) for _ in range(2))
    attempt = here.running()
    job_id = attempt.claim.job_id
    last = here.job(job_id).seq
    with (
        listening(here.app) as near,
        listening(there.app) as far,
        httpx.Client(base_url=near, headers={"Authorization": f"Bearer {attempt.token}"}) as reporter,
        stream(far, job_id, ADMIN_KEY) as response,
    ):
        events = read_in_background(response, upto=last + 1)
        body = {"rows": [row(1)]}
        assert reporter.post(f"/v1/attempts/{attempt.id}/metrics", json=body).status_code == 204
        assert events()[-1].seq == last + 1
    here.close()
    there.close()


@pytest.mark.slow
def test_servers_hear_of_each_other_s_commits(settings, valkey_url):
    """What the leader plans from and who callers are; the sender itself hears nothing of its own again."""
    here, there = (ServiceDriver(settings.model_copy(update={"redis_url": valkey_url})) for _ in range(2))
    heard = {here: [], there: []}
    with listening(here.app), listening(there.app):
        for one, changes in heard.items():
            one.database.listen(changes.append)

        def connected() -> bool:
            here.database.tell(Changes(plan=True))
            return bool(heard[there])

        until(connected, "the other server listens")
        time.sleep(0.2)
        for changes in heard.values():
            changes.clear()
        here.database.tell(Changes(jobs={"job-a"}, plan=True, callers=True))
        until(lambda: heard[there], "what the other server did")
        time.sleep(0.2)
    assert heard[there] == [Changes(jobs={"job-a"}, plan=True, callers=True, elsewhere=True)]
    assert heard[here] == [Changes(jobs={"job-a"}, plan=True, callers=True)]
    here.close()
    there.close()


@pytest.mark.slow
def test_a_stream_of_a_server_that_stops_says_so_and_goes_on_at_another(settings):
    here, there = ServiceDriver(settings), ServiceDriver(settings)
    attempt = here.running()
    job_id = attempt.claim.job_id
    with listening(here.app) as near, stream(near, job_id, ADMIN_KEY) as response:
        pieces = response.iter_bytes()
        next(pieces)
        here.app.state.events._loop.call_soon_threadsafe(here.app.state.events.retire)
        text = b"".join(pieces)
        assert text.endswith(stream_module.RECONNECT)
        with stream(near, job_id, ADMIN_KEY) as late:  # it had been sent before the port was closed
            assert late.read().endswith(stream_module.RECONNECT)
    post_rows(attempt, row(1))
    seen = max(int(line[4:]) for line in text.decode().splitlines() if line.startswith("id: "))
    with (
        listening(there.app) as far,
        stream(far, job_id, ADMIN_KEY, **{"Last-Event-ID": str(seen)}) as response,
    ):
        assert [event.seq for event in read(response, upto=seen + 1)] == [seen + 1]
    here.close()
    there.close()


@pytest.mark.slow
def test_a_silent_stream_is_kept_alive(service, monkeypatch):
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.05)
    attempt = service.running()
    with listening(service.app) as url, stream(url, attempt.claim.job_id, ADMIN_KEY) as response:
        assert any(piece == stream_module.KEEP_ALIVE for piece in response.iter_bytes())


@pytest.mark.slow
def test_a_stream_ends_soon_after_its_reader_has_left(service, monkeypatch):
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr("server.routes.events.RECHECK_S", 0.0)
    ada = service.someone()
    attempt = service.running()
    key = ada.headers["Authorization"].removeprefix("Bearer ")
    with listening(service.app) as url, stream(url, attempt.claim.job_id, key) as response:
        pieces = response.iter_bytes()
        next(piece for piece in pieces if piece == stream_module.KEEP_ALIVE)
        service.person.patch(f"/v1/people/{ada.get('/v1/me').json()['id']}", json={"active": False})
        assert b"event: end" not in b"".join(pieces)  # it ends, and the client's next try is refused
        assert ada.get(f"/v1/jobs/{attempt.claim.job_id}/events").status_code == 401


@pytest.mark.slow
def test_a_position_of_another_database_starts_anew(service):
    attempt = service.running()
    job_id = attempt.claim.job_id
    last = service.job(job_id).seq
    with (
        listening(service.app) as url,
        stream(url, job_id, ADMIN_KEY, **{"Last-Event-ID": "999"}) as response,
    ):
        assert [event.seq for event in read(response, last)] == list(range(1, last + 1))


@pytest.mark.parametrize("position", ["-1", "x", str(2**70)])
def test_a_position_that_is_none_is_refused(service, position):
    job_id = service.submit()
    answer = service.person.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": position})
    assert answer.status_code == 422


def test_streams_need_a_key_and_a_job(service):
    assert service.anyone.get("/v1/jobs/job-none/events").status_code == 401
    with listening(service.app) as url, stream(url, "job-none", ADMIN_KEY) as response:
        assert response.status_code == 404


@pytest.mark.slow
def test_a_client_that_reads_slowly_is_cut_off_and_resumes_without_a_gap(service, monkeypatch):
    monkeypatch.setattr(stream_module, "BACKLOG", 2)
    monkeypatch.setattr(stream_module, "COALESCE_S", 0.01)
    attempt = service.running(training={"steps": 1000})
    job_id = attempt.claim.job_id
    first = service.job(job_id).seq
    with listening(service.app) as url:
        with stream(url, job_id, ADMIN_KEY) as response:
            lines = response.iter_lines()
            assert next(lines) == "retry: 2000"
            for part in range(1, 17):
                rows = [row(step, f"{part}-{'x' * 70}-{name}") for step in range(1000) for name in range(5)]
                post_rows(attempt, *rows)
            found = list(read_events(lines))
        last = service.job(job_id).seq
        assert first <= found[-1].seq < last, "it was not cut off"
        with stream(url, job_id, ADMIN_KEY, **{"Last-Event-ID": str(found[-1].seq)}) as response:
            found += read(response, last)
    assert [event.seq for event in found] == list(range(1, last + 1))


def test_a_client_too_far_behind_is_cut_off():
    async def offers():
        client = Subscription()
        page = Page(0, 1, (Frame(1, b"x"),), 1, final=False)
        accepted = [client.offer(page) for _ in range(BACKLOG + 1)]
        return accepted, client.batches.qsize(), client.batches.get_nowait()

    accepted, waiting, first = asyncio.run(offers())
    assert accepted == [True] * BACKLOG + [False]
    assert (waiting, first) == (1, None)


def read_in_background(response, upto):
    """Starts to read; the returned function waits for the events."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(read, response, upto)
    pool.shutdown(wait=False)
    return lambda: future.result(20)


@pytest.mark.slow
def test_whole_step_rows_travel_as_such(service):
    attempt = service.running()
    post_rows(attempt, row(1))
    last = service.job(attempt.claim.job_id).seq
    with listening(service.app) as url, stream(url, attempt.claim.job_id, ADMIN_KEY) as response:
        event = read(response, last)[-1]
    assert event.data == {
        "attempt": 1,
        "rows": [{"step": 1, "update": WHOLE_STEP, "name": "reward", "value": 0.5}],
    }
