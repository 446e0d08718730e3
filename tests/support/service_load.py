"""People, programs and attempts that use a service at once, none of which forgives a failed request."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from powermean import Client, PowermeanError
from powermean.sse import read_events
from tests.support.hand_node import hand_spec

TIMEOUT_S = 30.0
FAILURES = (httpx.HTTPError, httpx.StreamError, AssertionError, ValueError)


@dataclass
class Load:
    """Each user is a thread with a connection of its own, kept as long as the server keeps it."""

    url: str
    key: str
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)  # that were accepted
    datasets: list[str] = field(default_factory=list)
    posted: list[int] = field(default_factory=list)  # steps whose metrics were acknowledged
    longest_s: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _users: list[threading.Thread] = field(default_factory=list)
    _followers: list[threading.Thread] = field(default_factory=list)

    def use(self, what: str, turn: Callable[[httpx.Client, int], None], pause_s: float) -> None:
        """Take turns until the end."""

        def work() -> None:
            with self.client() as client:
                number = 0
                while not self._over.wait(pause_s):
                    began = time.monotonic()
                    try:
                        turn(client, number)
                        self.done[what] += 1
                    except FAILURES as error:
                        self.failures.append(f"{what} {number}: {type(error).__name__} {error}")
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                    number += 1

        self._users.append(_started(work))

    def stop(self) -> None:
        """Let each finish its turn."""
        self._over.set()
        _ended(self._users)

    def wait(self) -> None:
        """Until those that follow have reached the end."""
        _ended(self._followers)

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=TIMEOUT_S)

    def read(self, client: httpx.Client, number: int) -> None:
        path = ("/v1/jobs?limit=5", "/v1/nodes", "/v1/me")[number % 3]
        _expect(client.get(path), 200)

    def submit(self, client: httpx.Client, number: int) -> None:
        answer = _expect(client.post("/v1/jobs", json=hand_spec(name=f"load {number}")), 202)
        self.jobs.append(answer["id"])

    def upload(self, client: httpx.Client, number: int) -> None:
        """Two seconds long, so that some are under way whenever a server stops."""

        def body() -> Iterator[bytes]:
            for line in range(20):
                yield json.dumps({"question": f"{number}-{line}", "answer": "1"}).encode() + b"\n"
                time.sleep(0.1)

        answer = client.post(f"/v1/datasets?name=load-{number}", content=body())
        self.datasets.append(_expect(answer, 201)["id"])

    def report(self, attempt_id: str, token: str) -> Callable[[httpx.Client, int], None]:
        """What an attempt posts: one step after the other, each twice, as after a lost answer."""

        def turn(client: httpx.Client, step: int) -> None:
            rows = [{"step": step, "update": -1, "name": "reward", "value": step / 7}]
            for _ in range(2):
                answer = client.post(
                    f"/v1/attempts/{attempt_id}/metrics",
                    json={"rows": rows},
                    headers={"Authorization": f"Bearer {token}"},
                )
                _expect(answer, 204)
            self.posted.append(step)

        return turn

    def follow(self, job_id: str, seen: list[int], ends: list[str]) -> None:
        """Follow a job's events to their end, by Last-Event-ID from stream to stream, without a pause.

        `seen` gets the steps of metrics, `ends` the last frame's kind of each stream.
        """

        def work() -> None:
            last = 0
            with self.client() as client:
                while not ends or ends[-1] != "end":
                    try:
                        last = self._read_stream(client, job_id, last, seen, ends)
                    except FAILURES as error:
                        self.failures.append(f"follow after {last}: {type(error).__name__} {error}")
                        return

        self._followers.append(_started(work))

    def follow_as_client(self, job_id: str, seen: list[int]) -> None:
        """The same with the product's own client."""

        def work() -> None:
            try:
                for event in Client(self.url, self.key).events(job_id):
                    if event.kind == "metrics":
                        seen.extend(row["step"] for row in event.data["rows"])
            except PowermeanError as error:
                self.failures.append(f"client: {error}")

        self._followers.append(_started(work))

    def _read_stream(
        self, client: httpx.Client, job_id: str, last: int, seen: list[int], ends: list[str]
    ) -> int:
        headers = {"Last-Event-ID": str(last)}
        with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            assert response.status_code == 200, response.status_code
            lines: list[str] = []

            def kept() -> Iterator[str]:
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        lines.append(line.removeprefix("event: "))
                    yield line

            for event in read_events(kept()):
                assert event.seq > last, f"event {event.seq} again"
                last = event.seq
                if event.kind == "metrics":
                    seen.extend(row["step"] for row in event.data["rows"])
        ends.append(lines[-1])
        self.done["streams"] += 1
        return last


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def _expect(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text[:200]}"
    return answer.json() if answer.content else None
