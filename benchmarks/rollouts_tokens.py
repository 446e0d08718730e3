"""Tokens a second: the rollout service's engines as the trainer asks them, and plain `generate`.

Each round has new prompts, as each step of a run has, and takes the peers one after the other, in an order
that turns; medians over rounds. Engines give a log-prob with each token, `generate` gives none.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from rollouts_models import Models, main_job
from rollouts_service import NotStartedError, Service, serving, told
from rollouts_table import Table, ratio
from transformers import AutoModelForCausalLM

from powermean.contracts.rollout import GenerateRequest, Sampling
from trainer.data.problem import Problem
from trainer.data.source import open_source
from trainer.learner.tokenizing import load_tokenizer, pad_token_id, prompt_encoder
from trainer.rollouts.sampling import time_limit

Thing = TypeVar("Thing")

PLAIN = "generate"  # the peer that ratios are to
_HITS, _ASKED = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"


@dataclass(frozen=True)
class Workload:
    """`prompts` prompts with `n` completions each; `shots` solved examples stand before each prompt."""

    name: str
    prompts: int
    n: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    shots: int = 0

    def request(self, tokenizer: object, number: int) -> GenerateRequest:
        """The request of round `number`."""
        spec = main_job()
        source = open_source(spec.data, None)
        problems = source.batch(number, self.prompts, spec.seed)
        before = source.batch(number, self.shots, spec.seed + 1) if self.shots else []
        return GenerateRequest(
            prompts=tuple(prompt_encoder(tokenizer)(with_shots(problems, before))),
            n=self.n,
            sampling=Sampling(
                temperature=spec.rollout.temperature,
                max_new_tokens=self.max_new_tokens,
                stop=self.stop,
                seed=number,
            ),
        )


def with_shots(problems: Sequence[Problem], before: Sequence[Problem]) -> list[Problem]:
    """Solved examples before each, in another order for each: only a group has its whole prefix in common."""
    solved = [f"{one.prompt} {one.answer}\n" for one in before]
    return [
        replace(problem, prompt="".join(turned(solved, place)) + problem.prompt)
        for place, problem in enumerate(problems)
    ]


def workloads() -> tuple[Workload, ...]:
    """What is sampled: long completions; the main job's step; the same with a prefix worth sharing."""
    spec = main_job()
    step = Workload(
        "the demo's step",
        spec.training.prompts_per_step,
        spec.rollout.group_size,
        spec.rollout.max_new_tokens,
        spec.rollout.stop,
    )
    few_shot = Workload(
        "... with 12 examples", step.prompts, step.n, step.max_new_tokens, step.stop, shots=12
    )
    return Workload("64 x 64 new tokens", 64, 1, 64), step, few_shot


class Plain:
    """`generate` of transformers in this process: one batch, padded on the left, do_sample."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._texts = [self._tokenizer.decode([one]) for one in range(len(self._tokenizer))]

    def complete(self, request: GenerateRequest) -> int:
        """Tokens sampled. Ends at tokens with a stop string in them: the cheapest way that it has."""
        pad, width = pad_token_id(self._tokenizer), max(map(len, request.prompts))
        ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in request.prompts])
        seen = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in request.prompts])
        sampling = request.sampling
        ends = [i for i, text in enumerate(self._texts) if any(stop in text for stop in sampling.stop)]
        with torch.inference_mode():
            rows = self._model.generate(
                input_ids=ids,
                attention_mask=seen,
                do_sample=True,
                temperature=sampling.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=request.n,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=pad,
                eos_token_id=ends or None,
            )
        return sum(sampled(row, pad) if ends else len(row) for row in rows[:, width:].tolist())


def sampled(row: Sequence[int], pad: int) -> int:
    """Length of a completion that `generate` filled up with pad tokens."""
    end = len(row)
    while end and row[end - 1] == pad:
        end -= 1
    return end


@dataclass(frozen=True)
class Peer:
    """Something that completes prompts; `complete` gives the number of tokens that it sampled."""

    name: str
    complete: Callable[[GenerateRequest], int]
    service: Service | None = None

    def hits(self) -> tuple[float, float]:
        """Prompt tokens found in vLLM's prefix cache so far, and those looked for."""
        if self.service is None:
            return 0.0, 0.0
        return self.service.counter(_HITS), self.service.counter(_ASKED)


def through(service: Service, request: GenerateRequest) -> int:
    """Tokens sampled by a rollout service."""
    found = service.client.generate(request, time_limit(request)).completions
    return sum(len(one.token_ids) for group in found for one in group)


@dataclass
class Measured:
    """What the rounds of one peer on one workload gave."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cached: float = 0.0
    asked: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second, the median over rounds."""
        return statistics.median(t / s for t, s in zip(self.tokens, self.seconds, strict=True))


def measure(peers: Sequence[Peer], workload: Workload, tokenizer: object, rounds: int) -> dict[str, Measured]:
    """Rounds over the peers; one more round before them warms up."""
    found: dict[str, Measured] = defaultdict(Measured)
    for number in range(rounds + 1):
        request = workload.request(tokenizer, number + 1)
        for peer in turned(peers, number):
            one, before, start = found[peer.name], peer.hits(), time.perf_counter()
            tokens = peer.complete(request)
            seconds, after = time.perf_counter() - start, peer.hits()
            told(f"{workload.name}, round {number}: {peer.name} {tokens} tokens in {seconds:.2f} s")
            if number:
                one.tokens.append(tokens)
                one.seconds.append(seconds)
                one.cached += after[0] - before[0]
                one.asked += after[1] - before[1]
    return found


def turned(things: Sequence[Thing], number: int) -> list[Thing]:
    """Another one begins each time: what a peer leaves behind must not always hit the same one."""
    turn = number % len(things) if things else 0
    return [*things[turn:], *things[:turn]]


def tokens_table(models: Models, name: str, engines: Sequence[str], rounds: int) -> Table:
    """All workloads on all peers that can be had."""
    folder = models.without_end(name)
    table = Table(
        f"Tokens a second on {name}, float32",
        ("workload", "peer", "tokens", "s", "tok/s", f"/ {PLAIN}", "prefix cache"),
    )
    with ExitStack() as stack:
        peers = [Peer(PLAIN, Plain(folder).complete)]
        for engine in engines:
            try:
                service = stack.enter_context(serving(engine, folder))
            except NotStartedError as why:
                table.notes.append(str(why))
                continue
            peers.append(Peer(f"{engine} engine", partial(through, service), service))
        tokenizer = load_tokenizer(folder)
        for workload in workloads():
            found = measure(peers, workload, tokenizer, rounds)
            for peer in peers:
                table.add(*row(workload, peer.name, found))
    return table


def row(workload: Workload, peer: str, found: dict[str, Measured]) -> tuple[str, ...]:
    """One line: medians, the ratio to plain generate, the share of prompt tokens that the cache had."""
    one = found[peer]
    return (
        workload.name,
        peer,
        f"{statistics.median(one.tokens):.0f}",
        f"{statistics.median(one.seconds):.2f}",
        f"{one.rate:.1f}",
        ratio(one.rate, found[PLAIN].rate),
        f"{one.cached / one.asked:.0%} hit" if one.asked else "-",
    )
