"""The asynchronous client has the same calls as the other, with the same parameters."""

import asyncio
import inspect
from typing import get_origin

import httpx

from powermean import (
    AsyncClient,
    Client,
    rest,
    rest_cluster,
    rest_identity,
    rest_sharing,
)
from powermean.calls import Call
from powermean.contracts.token_records import RecordedTokens, StepFacts, TrajectoryTokens
from powermean.contracts.trajectories import Trajectory
from powermean.deprecations import METHODS
from tests.support.sample_jobs import job

CALLS = (rest, rest_cluster, rest_identity, rest_sharing)
JOB = job().model_dump_json().encode()


def test_the_asynchronous_client_forwards_a_browsers_session() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=JOB)

    async def cancel() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncClient("http://127.0.0.1:8700", cookies={"s": "1"}, transport=transport) as client:
            assert await client.cancel_job("job-a") == job()

    asyncio.run(cancel())
    assert seen[0].headers["Cookie"] == "s=1"
    assert seen[0].headers["Origin"] == "http://127.0.0.1:8700"


def test_one_trajectory_and_its_tokens() -> None:
    found = Trajectory(
        index=7, group=0, problem="a", reward=1.0, advantage=0.5, length=1, truncated=False, has_tokens=True
    )
    facts = StepFacts(step=3, progress=0, mean_reward=1, reward_std=0, max_new_tokens=4, updates=())
    tokens = TrajectoryTokens(index=7, token_ids=(5,), pieces=("<b>",), sampler_log_probs=(-0.5,))
    recorded = RecordedTokens(facts=facts, tokens=tokens)
    answers = {
        "/v1/jobs/job-a/trajectories/3/7": found.model_dump_json(),
        "/v1/jobs/job-a/trajectories/3/7/tokens": recorded.model_dump_json(),
    }
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=answers[request.url.path]))

    async def both() -> tuple[Trajectory, RecordedTokens]:
        async with AsyncClient("http://127.0.0.1:8700", transport=transport) as client:
            return await client.trajectory("job-a", 3, 7), await client.trajectory_tokens("job-a", 3, 7)

    assert asyncio.run(both()) == (found, recorded)


def calls_of(client: type) -> dict[str, str]:
    """Name, parameters and result of each method that is a call."""
    return {
        name: str(inspect.signature(value))
        for name, value in vars(client).items()
        if callable(value) and getattr(value, "__module__", "") in {calls.__name__ for calls in CALLS}
    }


def test_both_clients_have_all_calls_with_their_parameters() -> None:
    builders = {
        name
        for calls in CALLS
        for name, value in vars(calls).items()
        if inspect.isfunction(value) and get_origin(inspect.signature(value).return_annotation) is Call
    }
    by_hand = {
        "file",
        "checkpoint_file",
        "origin_file",
        "events",
        "upload_dataset",
        "audit_export",
    }  # their bodies are streams: see Client
    of_strangers = {"start_device", "claim_device"}  # they have no key yet: see Stranger
    assert calls_of(Client) == calls_of(AsyncClient)
    assert set(calls_of(Client)) == builders - by_hand - of_strangers | {method.old for method in METHODS}
    assert calls_of(Client)["get_job"] == "(self, /, job_id: str) -> powermean.contracts.api.Job"
    assert Client.get_job.__doc__ == rest.get_job.__doc__
