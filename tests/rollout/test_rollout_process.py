"""The rollout service as the node starts it: a process of its own, spoken to by the trainer's client."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import ChannelRequest, GenerateRequest, Sampling
from powermean.processes import descendants, start_time
from powermean.tokens import Verb
from rollout.client import EngineRefusedError, EngineTimeoutError, EngineUnreachableError, RolloutClient
from tests.support.rollout_service import Service, StartService
from tests.support.tiny_engines import JOB, save_tiny_model

REQUEST = GenerateRequest(prompts=((1, 10, 2), (4, 10)), n=3, sampling=Sampling(max_new_tokens=6, seed=0))
LONG = GenerateRequest(prompts=((3,),) * 4096, n=64, sampling=Sampling(max_new_tokens=60, seed=0))

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(start_service: StartService) -> Service:
    return start_service()


@pytest.mark.slow
def test_it_generates_over_http_as_in_process(service: Service) -> None:
    with service.client() as client:
        state = client.health()
        assert (state.ready, state.engine, state.attempt, state.max_model_len) == (
            True,
            "transformers",
            2,
            64,
        )
        first = client.generate(REQUEST, 60)
        assert first.completions == client.generate(REQUEST, 60).completions
        assert [len(group) for group in first.completions] == [3, 3]


@pytest.mark.slow
def test_published_weights_change_what_is_generated(service: Service, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(save_tiny_model(tmp_path, seed=5))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with service.client() as client:
        before = client.generate(REQUEST, 60).completions
        version = client.health().version + 1
        assert client.publish(service.publish_request(weights, version), 60).version == version
        after = client.generate(REQUEST, 60).completions
        assert after != before
        assert after[0][0].weight_versions[0].version == version
        with pytest.raises(EngineRefusedError) as refused:
            client.publish(service.publish_request(weights, version), 60)
        assert (refused.value.status, refused.value.code) == (409, "stale_version")
        assert client.generate(REQUEST, 60).completions == after


def test_a_lower_attempt_is_refused(service: Service) -> None:
    with service.client(attempt=1) as client:
        for call in (
            lambda: client.generate(REQUEST, 60),
            lambda: client.publish(service.publish_request({"x": torch.zeros(1)}, 9, attempt=1), 60),
        ):
            with pytest.raises(EngineRefusedError, match="attempt 1 has been replaced") as refused:
                call()
            assert (refused.value.status, refused.value.code) == (409, "fenced")
            assert refused.value.retryable is False


def test_a_publish_needs_the_token_of_its_own_attempt(service: Service) -> None:
    request = service.publish_request({"x": torch.zeros(1)}, 9, attempt=3)
    with service.client() as client, pytest.raises(EngineRefusedError, match=r"job-1\.2") as refused:
        client.publish(request, 60)
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


@pytest.mark.parametrize(
    ("claims", "status", "code"),
    [
        ({"job_id": "job-2"}, 403, "other_job"),
        ({"verbs": (Verb.REPORT,)}, 403, "forbidden"),
        ({"verbs": (Verb.PUBLISH,)}, 403, "forbidden"),
    ],
)
def test_a_token_allows_what_it_says(
    service: Service, claims: dict[str, object], status: int, code: str
) -> None:
    with service.client(**claims) as client, pytest.raises(EngineRefusedError) as refused:
        client.generate(REQUEST, 60)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_a_channel_is_opened_to_the_current_attempt_by_an_engine_that_has_it(service: Service) -> None:
    def opened(attempt: int, /, **claims: object) -> str:
        request = ChannelRequest(job_id=JOB, attempt=attempt, method="gloo", host="127.0.0.1", port=9)
        with service.client(**claims) as client, pytest.raises(EngineRefusedError) as refused:
            client.open_channel(request, 10)
        return refused.value.code

    assert opened(1, attempt=1) == "fenced"
    assert opened(3) == "forbidden"
    assert opened(2, verbs=(Verb.GENERATE,)) == "forbidden"
    assert opened(2) == "method_unsupported"


def test_nothing_but_readiness_is_told_without_a_token(service: Service) -> None:
    with httpx.Client(base_url=service.url) as http:
        assert http.get("/health").json() == {"ready": True}
        for method, path in (
            ("POST", "/v1/generate"),
            ("POST", "/v1/publish"),
            ("POST", "/v1/channel"),
            ("POST", "/v1/hold"),
            ("GET", "/metrics"),
            ("GET", "/docs"),
        ):
            response = http.request(method, path)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "unauthenticated"
        forged = http.get("/metrics", headers={"Authorization": "Bearer " + service.token()[:-4] + "AAAA"})
        assert forged.status_code == 401


def test_other_host_names_are_refused(service: Service) -> None:
    headers = {"Host": "evil.example", "Authorization": f"Bearer {service.token()}"}
    response = httpx.get(service.url + "/health", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_host")
    local = httpx.get(service.url + "/health", headers={"Host": "localhost:1234"})
    assert local.status_code == 200


def test_bad_requests_name_the_field(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=service.url, headers=headers) as http:
        sampling = {"max_new_tokens": 4}
        for body, path in (
            ({"prompts": [[1]], "sampling": {"max_new_tokens": 0}}, "sampling.max_new_tokens"),
            ({"prompts": [[1]], "sampling": sampling, "surprise": 1}, "surprise"),
            ({"prompts": [[1], []], "sampling": sampling}, "prompts.1"),
        ):
            response = http.post("/v1/generate", json=body)
            assert response.status_code == 422
            assert response.json()["error"]["message"].startswith(path + ":")
        assert http.post("/v1/nothing").json()["error"]["code"] == "not_found"
        assert http.get("/v1/generate").json()["error"]["code"] == "method_not_allowed"


def test_large_bodies_are_refused_before_they_are_read(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.token()}"}

    def pieces() -> Iterator[bytes]:
        yield b'{"prompts": [['
        for _ in range(20):
            yield b" " * 20_000

    for content in (b" " * 300_000, pieces()):
        response = httpx.post(service.url + "/v1/generate", content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_it_counts_what_it_does(service: Service) -> None:
    with service.client() as client:
        client.generate(REQUEST, 60)
    counts = service.counts()
    assert counts["powermean_rollout_completion_tokens_total"] >= 6
    assert counts["powermean_rollout_attempt"] == 2
    assert counts["powermean_rollout_generate_seconds_count"] >= 1


@pytest.mark.slow
def test_work_that_nobody_waits_for_is_dropped_and_the_queue_is_bounded(service: Service) -> None:
    """The client gives up on an endless request; the next one does not wait for the rest of it."""
    with service.client() as client:
        with pytest.raises(EngineTimeoutError) as timeout:
            client.generate(LONG, 1.0)
        assert timeout.value.retryable
        started = time.monotonic()
        client.generate(REQUEST, 60)
        assert time.monotonic() - started < 30

    with ExitStack() as stack:
        endless = [stack.enter_context(service.client()) for _ in range(2)]
        threads = [threading.Thread(target=_until_broken_off, args=(one,)) for one in endless]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while service.counts()["powermean_rollout_requests"] < 2:  # one runs, one waits
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with (
            service.client() as client,
            pytest.raises(EngineRefusedError, match="2 requests are already running or") as refused,
        ):
            client.generate(REQUEST, 60)
        assert (refused.value.status, refused.value.code, refused.value.retryable) == (503, "busy", True)
    for thread in threads:
        thread.join(30)


@pytest.mark.slow
def test_it_stops_on_sigterm_in_mid_request(start_service: StartService) -> None:
    service = start_service()
    thread = threading.Thread(target=_give_up_after, args=(service, 60.0))
    thread.start()
    time.sleep(1.0)
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(20)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.slow
def test_it_dies_with_its_parent_and_the_client_knows_in_time(start_service: StartService) -> None:
    service = start_service(below_parent=True)
    (child,) = descendants(service.process.pid)
    killer = threading.Timer(1.0, service.process.kill)
    killer.start()
    started = time.monotonic()
    with service.client() as client:
        with pytest.raises(EngineUnreachableError, match="is gone") as error:
            client.generate(LONG, 120)
        assert time.monotonic() - started < 20
        assert error.value.retryable
        assert error.value.error.code == "engine_unreachable"
        with pytest.raises(EngineUnreachableError):
            client.generate(REQUEST, 5)
    assert start_time(child) is None
    killer.join()


def _until_broken_off(client: RolloutClient) -> None:
    with pytest.raises((EngineUnreachableError, EngineRefusedError)):
        client.generate(LONG, 120.0)


def _give_up_after(service: Service, seconds: float) -> None:
    with (
        service.client() as client,
        pytest.raises((EngineTimeoutError, EngineUnreachableError, EngineRefusedError)),
    ):
        client.generate(LONG, seconds)
