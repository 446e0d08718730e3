"""Adapters of several jobs over HTTP: tokens keep them apart, calls run together. vLLM is played."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import httpx
import pytest
import torch
import uvicorn
from safetensors.torch import save_file

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import (
    AdapterShape,
    Completion,
    GenerateRequest,
    HoldRequest,
    PublishRequest,
    Sampling,
    VersionSpan,
    WeightFile,
)
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout.app import create_app
from rollout.client import EngineRefusedError, RolloutClient
from rollout.engine import Fence
from rollout.settings import RolloutSettings
from rollout.vllm import adapter_engine as vllm_adapter_engine
from rollout.vllm.adapter_engine import AdapterEngine
from rollout.vllm.adapters import Adapters
from rollout.vllm.model_folder import ModelFolder
from rollout.weights import WeightSource
from tests.support.fake_adapter_server import FakeAdapterServer

REQUEST = GenerateRequest(prompts=((1, 2),), sampling=Sampling(max_new_tokens=4))
SLOW = GenerateRequest(prompts=((3, 3),), sampling=Sampling(max_new_tokens=4))
MODEL = ModelFolder("tiny", vocabulary=9, end_tokens=frozenset(), tied=True, shapes={})


class Service:
    """The service in the test's process. A call with SLOW's prompt ends when `release` is set."""

    def __init__(self, folder: Path, keys: KeyPair, only: Fence | None = None) -> None:
        self.server = FakeAdapterServer(folder)
        self.store = ArtefactStore((folder / "artefacts").as_uri())
        self.folder = folder
        self.keys = keys
        self.release = Event()
        self.slow_calls = threading.Semaphore(0)  # one for each that began
        adapters = Adapters(self.server, WeightSource(self.store), slots=2)  # type: ignore[arg-type]
        engine = AdapterEngine(self.server, MODEL, adapters, only)  # type: ignore[arg-type]
        settings = RolloutSettings(
            engine="vllm",
            model=folder,
            public_key=folder / "key",
            max_adapters=2,
            max_waiting=0,
            jobs_file=folder / "jobs.json",
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(create_app(engine, settings, keys.public_pem), log_level="warning")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def complete(
        self,
        _server: object,
        request: GenerateRequest,
        _ends: object,
        _cancelled: Event,
        _finished: object,
        *,
        adapter: tuple[str, int],
    ) -> tuple[tuple[Completion, ...], ...]:
        """Plays vllm_requests.complete: the version is that of the adapter that is loaded by this name."""
        assert adapter[0] in self.server.loaded
        if request.prompts == SLOW.prompts:
            self.slow_calls.release()
            assert self.release.wait(20)
            assert adapter[0] in self.server.loaded
        spans = (VersionSpan(version=adapter[1], start=0, end=1),)
        return ((Completion(token_ids=(1,), logprobs=(-1.0,), finish_reason="stop", weight_versions=spans),),)

    def client(
        self, job: str, attempt: int = 1, verbs: tuple[str, ...] = tuple(Verb), age: timedelta = timedelta()
    ) -> RolloutClient:
        now = datetime.now(UTC) - age
        token = sign_attempt_token(self.keys.private_pem, job, attempt, verbs, now=now)
        return RolloutClient(self.url, lambda: token)

    def request(self, job: str, version: int, attempt: int = 1, rank: int = 4) -> PublishRequest:
        path = self.folder / "adapter.safetensors"
        save_file({"x": torch.full((1,), float(version))}, path)
        ref = self.store.put_file(f"jobs/{job}/weights/{attempt}.{version}", path)
        return PublishRequest(
            job_id=job,
            attempt=attempt,
            version=version,
            method="store",
            files=(WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size),),
            adapter=AdapterShape(rank=rank, alpha=8.0, target_modules=("q_proj",)),
        )

    def stop(self) -> None:
        self.release.set()
        self._uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def service(tmp_path: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    started = Service(tmp_path, keys)
    monkeypatch.setattr(vllm_adapter_engine, "complete", started.complete)
    yield started
    started.stop()


def _version(client: RolloutClient, request: GenerateRequest = REQUEST) -> int:
    return client.generate(request, 30).completions[0][0].weight_versions[0].version


def _refused(call: object) -> EngineRefusedError:
    with pytest.raises(EngineRefusedError) as caught:
        call()  # type: ignore[operator]
    return caught.value


def test_a_partition_longer_than_a_token_lives_stops_no_job_that_the_engine_serves(service: Service) -> None:
    """Whom the server has given up it takes from the list, and a newer attempt's adapter shuts it out."""
    jobs = service.folder / "jobs.json"
    with service.client("a", age=timedelta(hours=3)) as a, service.client("a", attempt=2) as newer:
        for text in (None, "[]", '["b"]', "broken"):
            if text is not None:
                jobs.write_text(text)
            assert _refused(lambda: a.publish(service.request("a", 0), 30)).status == 401
        jobs.write_text('["b", "a"]')
        a.publish(service.request("a", 0), 30)
        assert _version(a) == 0
        newer.publish(service.request("a", 5, attempt=2), 30)
        assert _refused(lambda: a.generate(REQUEST, 30)).code == "fenced"
        assert _refused(lambda: a.publish(service.request("a", 1), 30)).code == "fenced"
        jobs.write_text('["b"]')
        assert _refused(lambda: a.generate(REQUEST, 30)).status == 401


def test_a_node_cut_off_from_the_server_still_sees_that_its_engine_is_well(service: Service) -> None:
    """Its own token, whose subject is the engine, comes from the server too."""
    with service.client("engine-1", verbs=(Verb.GENERATE,), age=timedelta(hours=3)) as node:
        state = node.health()
        assert state.ready
        assert state.adapters is not None
        assert _refused(lambda: node.generate(REQUEST, 30)).status == 401


def test_each_token_reaches_the_adapter_of_its_own_job(service: Service) -> None:
    with service.client("a") as a, service.client("b", attempt=3) as b:
        assert _refused(lambda: a.generate(REQUEST, 30)).code == "adapter_missing"
        assert a.publish(service.request("a", 0), 30).version == 0
        state = b.publish(service.request("b", 7, attempt=3), 30)
        assert (state.version, state.attempt) == (7, 3)
        assert state.adapters is not None
        assert (state.adapters.slots, state.adapters.taken, state.adapters.max_rank) == (2, 2, 8)
        assert (_version(a), _version(b)) == (0, 7)
        assert a.health().version == 0
        a.publish(service.request("a", 1), 30)
        assert (_version(a), _version(b)) == (1, 7)


def test_another_jobs_adapter_can_be_neither_replaced_nor_dropped(service: Service) -> None:
    with service.client("a") as a, service.client("b") as b:
        a.publish(service.request("a", 1), 30)
        refusal = _refused(lambda: b.publish(service.request("a", 2), 30))
        assert (refusal.status, refusal.code) == (403, "forbidden")
        b.drop_adapter()  # its own: it has none
        assert _version(a) == 1


@pytest.mark.slow
def test_fences_slots_and_ranks_are_refused_by_name(service: Service) -> None:
    with service.client("a", 2) as a, service.client("a", 1) as old, service.client("c") as c:
        a.publish(service.request("a", 1, attempt=2), 30)
        for call in (
            lambda: old.generate(REQUEST, 30),
            lambda: old.publish(service.request("a", 9, attempt=1), 30),
            old.drop_adapter,
        ):
            assert _refused(call).code == "fenced"
        assert _refused(lambda: a.publish(service.request("a", 1, attempt=2), 30)).code == "stale_version"
        assert (
            _refused(lambda: a.publish(service.request("a", 2, attempt=2, rank=9), 30)).code == "adapter_rank"
        )
        with service.client("b") as b:
            b.publish(service.request("b", 1), 30)
        assert _refused(lambda: c.publish(service.request("c", 1), 30)).code == "adapter_slots"
        assert a.drop_adapter().adapters.taken == 1  # type: ignore[union-attr]
        c.publish(service.request("c", 1), 30)
        whole = service.request("c", 2).model_copy(update={"adapter": None})
        assert _refused(lambda: c.publish(whole, 30)).code == "adapters_only"
        held = HoldRequest(job_id="c", attempt=1, version=3)
        assert _refused(lambda: c.hold(held, 30)).code == "method_unsupported"


def test_verbs_are_asked_for(service: Service) -> None:
    with service.client("a", verbs=(Verb.GENERATE,)) as a:
        assert _refused(a.drop_adapter).code == "forbidden"
        assert _refused(lambda: a.publish(service.request("a", 1), 30)).code == "forbidden"
    assert httpx.delete(service.url + "/v1/adapter").status_code == 401
    assert httpx.get(service.url + "/health").json() == {"ready": True}


@pytest.mark.slow
def test_publishes_pass_completions_under_way_which_keep_their_version(service: Service) -> None:
    """As sampling ahead does: generate and publish of one job at once, beside another job's."""
    found: dict[str, list[int]] = {"a": [], "b": []}

    def ask(job: str) -> None:
        with service.client(job) as client:
            found[job].append(_version(client, SLOW))

    with service.client("a") as a, service.client("b") as b:
        a.publish(service.request("a", 1), 30)
        b.publish(service.request("b", 1), 30)
        threads = [threading.Thread(target=ask, args=(job,)) for job in ("a", "a", "b")]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert service.slow_calls.acquire(timeout=20)
        a.publish(service.request("a", 2), 30)
        a.publish(service.request("a", 3), 30)
        assert _version(a) == 3
        assert service.server.versions == {"a.1.1", "a.1.3", "b.1.1"}
        service.release.set()
        for thread in threads:
            thread.join(20)
        assert found == {"a": [1, 1], "b": [1]}
        assert (a.health().version, b.health().version) == (3, 1)
    end = time.monotonic() + 10
    while service.server.versions != {"a.1.3", "b.1.1"}:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_numbers_of_one_job_and_of_the_whole_engine(service: Service) -> None:
    with service.client("a") as a, service.client("b") as b:
        a.publish(service.request("a", 4), 30)
        b.publish(service.request("b", 9), 30)
        _version(a)
    token = sign_attempt_token(service.keys.private_pem, "a", 1, tuple(Verb))
    text = httpx.get(service.url + "/metrics", headers={"Authorization": f"Bearer {token}"}).text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts["powermean_rollout_weight_version"]) == 4
    assert float(counts["powermean_rollout_adapters"]) == 2
    assert float(counts["powermean_rollout_publish_seconds_count"]) == 2
    assert float(counts["powermean_rollout_requests"]) == 0


def test_more_calls_than_the_slots_account_for_are_refused_and_publishes_are_not(service: Service) -> None:
    with service.client("a") as a:
        a.publish(service.request("a", 1), 30)
        threads = [threading.Thread(target=lambda: _version(a, SLOW)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert service.slow_calls.acquire(timeout=20)
        assert _refused(lambda: a.generate(REQUEST, 30)).code == "busy"
        a.publish(service.request("a", 2), 30)
        service.release.set()
        for thread in threads:
            thread.join(20)
        assert _version(a) == 2


def test_a_private_engine_serves_its_own_job_only(
    tmp_path: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, keys, only=Fence("a", 2, 0))
    monkeypatch.setattr(vllm_adapter_engine, "complete", service.complete)
    try:
        with service.client("b") as b, service.client("a", 1) as old, service.client("a", 2) as a:
            assert _refused(lambda: b.publish(service.request("b", 1), 30)).code == "other_job"
            assert _refused(lambda: old.publish(service.request("a", 1, attempt=1), 30)).code == "fenced"
            a.publish(service.request("a", 1, attempt=2), 30)
            assert _version(a) == 1
    finally:
        service.stop()
