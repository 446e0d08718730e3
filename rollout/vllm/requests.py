"""Completion requests to a vLLM server: many at once, cancelled together."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import httpx

from powermean.contracts.rollout import Completion, GenerateRequest, VersionSpan
from rollout.counting import Finished, nobody
from rollout.engine import CancelledError, EngineError
from rollout.vllm.server import VllmServer, content

_POLL_S = 0.05
_CONNECTIONS = 128
_FLOOR = -9000.0  # vLLM writes -9999 for values that JSON can't represent


@dataclass(frozen=True)
class _Part:
    """Some completions of one prompt: vLLM takes at most max_num_seqs at once, greedy ones one by one."""

    prompt: tuple[int, ...]
    n: int


def complete(
    server: VllmServer,
    request: GenerateRequest,
    end_tokens: frozenset[int],
    cancelled: Event,
    finished: Finished = nobody,
    *,
    adapter: tuple[str, int] | None = None,
) -> tuple[tuple[Completion, ...], ...]:
    """completions[i][j] is the j-th completion of prompt i. `adapter`: its name and version.

    Raises EngineError (engine_timeout, engine_died, engine_error, not_finite) and CancelledError.
    """
    most = server.options.max_num_seqs if request.sampling.temperature else 1
    parts = [
        _Part(prompt, min(most, request.n - start))
        for prompt in request.prompts
        for start in range(0, request.n, most)
    ]
    replies = asyncio.run(_ask_all(server, request, parts, end_tokens, cancelled, finished, adapter))
    per_prompt = len(parts) // len(request.prompts)
    return tuple(
        tuple(one for reply in replies[start : start + per_prompt] for one in reply)
        for start in range(0, len(replies), per_prompt)
    )


async def _ask_all(
    server: VllmServer,
    request: GenerateRequest,
    parts: Sequence[_Part],
    end_tokens: frozenset[int],
    cancelled: Event,
    finished: Finished,
    adapter: tuple[str, int] | None,
) -> list[list[Completion]]:
    limit = server.deadlines.generate
    try:
        async with asyncio.timeout(limit), _client(server) as client, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_ask(client, server, request, part, end_tokens, adapter)) for part in parts
            ]
            for task, part in zip(tasks, parts, strict=True):
                task.add_done_callback(partial(_told, finished, part.n))
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=_POLL_S)
                if cancelled.is_set():
                    raise CancelledError
            return [task.result() for task in tasks]
    except BaseExceptionGroup as group_error:
        raise _first(group_error) from group_error
    except TimeoutError as error:
        raise EngineError(
            504,
            "engine_timeout",
            f"vLLM did not finish {len(parts)} requests within {limit:.0f} s",
            remedy="Request fewer or shorter completions at once.",
        ) from error


def _told(finished: Finished, count: int, task: asyncio.Task[list[Completion]]) -> None:
    if not task.cancelled() and task.exception() is None:
        finished(count)


@contextlib.asynccontextmanager
async def _client(server: VllmServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(
        uds=str(server.socket), limits=httpx.Limits(max_connections=_CONNECTIONS)
    )
    async with httpx.AsyncClient(
        transport=transport,
        base_url="http://vllm",
        headers=dict(server.headers),
        timeout=server.deadlines.generate + 1,
    ) as client:
        yield client


async def _ask(
    client: httpx.AsyncClient,
    server: VllmServer,
    request: GenerateRequest,
    part: _Part,
    end_tokens: frozenset[int],
    adapter: tuple[str, int] | None,
) -> list[Completion]:
    sampling = request.sampling
    body = {
        "model": adapter[0] if adapter else "base",
        "token_ids": part.prompt,
        "sampling_params": {
            "n": part.n,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop),
            # The same end tokens as in the other engine, even if vLLM's own view of the model differs.
            "ignore_eos": True,
            "stop_token_ids": sorted(end_tokens),
            "logprobs": 0,
            "skip_special_tokens": False,
        },
    }
    try:
        reply = await client.post("/inference/v1/generate", json=body)
    except httpx.TransportError as error:
        raise server.died("generate", error) from error
    choices = sorted(content("generate", reply)["choices"], key=lambda choice: int(choice["index"]))
    return [_completion(choice, adapter) for choice in choices]


def _completion(choice: dict[str, Any], adapter: tuple[str, int] | None) -> Completion:
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise EngineError(503, "engine_error", f"vLLM aborted a completion: {reason}", remedy="Ask again.")
    log_probs = tuple(one["logprob"] for one in choice["logprobs"]["content"])
    if not all(math.isfinite(one) and one > _FLOOR for one in log_probs):
        raise EngineError(
            500,
            "not_finite",
            "the model's logits are not finite: its weights have diverged",
            remedy="Lower optimizer.learning_rate or optimizer.max_grad_norm, and start from a checkpoint.",
        )
    size = len(choice["token_ids"])
    spans = (
        (VersionSpan(version=adapter[1], start=0, end=size),)
        if adapter
        else tuple(
            VersionSpan(version=int(span["version"]), start=span["start"], end=span["end"])
            for span in choice["weight_versions"]
        )
    )
    return Completion(
        token_ids=tuple(choice["token_ids"]),
        logprobs=log_probs,
        finish_reason=reason,
        weight_versions=spans,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Which of several simultaneous errors to report; anything but an EngineError comes first."""
    found = [*_leaves(group)]
    return min(found, key=lambda error: isinstance(error, EngineError))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
