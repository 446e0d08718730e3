"""How often a request goes to a thread and back: each time costs about as much as a query."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import pytest

from server.identity import recent
from tests.support.service_driver import ServiceDriver, example_spec


@contextmanager
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What ran in a thread."""
    names: list[str] = []
    run = anyio.to_thread.run_sync

    async def noted(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        names.append(getattr(work, "__name__", repr(work)))
        return await run(work, *arguments, **options)

    monkeypatch.setattr(anyio.to_thread, "run_sync", noted)
    yield names
    monkeypatch.setattr(anyio.to_thread, "run_sync", run)


def asks_redis(service: ServiceDriver) -> bool:
    """On Postgres, where servers count requests together: once more to a thread."""
    return bool(service.app.state.rates.shared)


def test_submits_and_cancels_share_the_threads_of_their_lines(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recent, "REMEMBERED_S", 60.0)
    job_id = service.submit()
    with ways(monkeypatch) as submitted:
        service.person.post("/v1/jobs", json=example_spec())
    assert len(submitted) == asks_redis(service), submitted
    with ways(monkeypatch) as cancelled:
        service.person.post(f"/v1/jobs/{job_id}/cancel")
    assert len(cancelled) == asks_redis(service), cancelled


@pytest.mark.slow
def test_a_report_waits_in_its_line_and_goes_to_no_thread_of_its_own(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    attempt = service.running()
    with ways(monkeypatch) as reported:
        attempt.post("metrics", {"rows": [{"step": 1, "name": "reward", "value": 0.5}]})
    assert len(reported) == asks_redis(service), reported
