"""Recomputes a recorded step's objective under the same algorithm or another: python -m trainer.replay

Reads a ReplayTask (--task FILE, or standard input), stores the result in the artefact store and prints a
ReplayOutcome as its last line; progress goes to standard error.
"""

import argparse
import gzip
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.attempts import JobError
from powermean.contracts.replays import (
    TOLERANCE,
    Aggregates,
    Numbers,
    ReplayedTrajectory,
    ReplayedUpdate,
    ReplayOutcome,
    ReplayResult,
    ReplaySummary,
    ReplayTask,
    UpdateSummary,
)
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateTokens
from powermean.contracts.trajectories import TrajectoryRow
from powermean.means import known_mean
from powermean.token_segments import SegmentCorruptError, read_facts, read_trajectories, write_segment
from trainer.objectives import Algorithm, Distance
from trainer.replay.recorded_step import RecordedStep, column
from worker.settings import NodeSettings, NodeSettingsError

CHUNK = 64  # trajectories processed together by the kernel
NAMES = tuple(Numbers.model_fields)


def main() -> int:
    """Replay a step. Exit status 0 whatever the result, unless the replay itself failed."""
    parser = argparse.ArgumentParser(prog="python -m trainer.replay", description=main.__doc__)
    parser.add_argument("--task", type=Path, help="file with the ReplayTask; standard input without it")
    parser.add_argument("--out", type=Path, help="file for the ReplayOutcome; standard output without it")
    arguments = parser.parse_args()
    text = arguments.task.read_text() if arguments.task else sys.stdin.read()
    try:
        settings = NodeSettings.read()
        task = ReplayTask.model_validate_json(text)
        store = ArtefactStore(settings.artefacts_url, existing=True)
    except (NodeSettingsError, ValidationError, ArtefactError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the node may be training
    outcome = run(task, store, lambda line: print(line, file=sys.stderr, flush=True)).model_dump_json()
    if arguments.out:
        arguments.out.write_text(outcome + "\n")
    else:
        print(outcome)
    return 0


def run(task: ReplayTask, store: ArtefactStore, tell: Callable[[str], None]) -> ReplayOutcome:
    """Replay a stored step and store the result next to it. `tell` is called with the progress."""
    try:
        data = store.get_bytes(task.tokens)
        facts = read_facts(data)
        tell(f"replaying step {facts.step} as {task.algorithm.name}")
        result, tokens = replay(
            facts,
            task.rows,
            _told(read_trajectories(data), tell),
            task.recorded,
            task.algorithm,
            task.distances,
        )
        owner = f"jobs/{task.job_id}/replays/{task.replay_id}"
        packed = gzip.compress(result.model_dump_json().encode(), mtime=0)
        return ReplayOutcome(
            summary=result.summary,
            result=store.put_bytes(owner, "result.json.gz", packed),
            tokens=store.put_bytes(owner, "tokens.jsonl.gz", write_segment(facts, tokens)),
        )
    except ArtefactError as error:
        return ReplayOutcome(error=error.error)
    except SegmentCorruptError as error:
        message = f"the step's token records can't be read: {error}"
        return ReplayOutcome(error=JobError(code=error.code, message=message))


def replay(
    facts: StepFacts,
    rows: Sequence[TrajectoryRow],
    tokens: Iterable[TrajectoryTokens],
    recorded: AlgorithmSpec,
    algorithm: AlgorithmSpec,
    distances: Mapping[int, float] | None = None,
) -> tuple[ReplayResult, list[TrajectoryTokens]]:
    """The numbers of `algorithm` for a step trained with `recorded`, and the tokens with its weights.

    `rows` are all trajectories of the step, `tokens` those that were recorded; `distances` are the recorded
    distances to GRPO by update. Log-ratios stay as they were, since the recorded algorithm trained the
    weights behind them. The KL penalty is left out, because the reference's log-probs are not recorded.
    """
    step = RecordedStep.of(facts, rows, recorded, algorithm)
    found = _Found()
    kept: list[TrajectoryTokens] = []
    chunks = iter(tokens)
    while chunk := list(islice(chunks, CHUNK)):
        weights: dict[int, list[UpdateTokens]] = defaultdict(list)
        for update in facts.updates:
            _replay_chunk(step, update.update, chunk, found, weights)
        kept += [one.model_copy(update={"updates": tuple(weights[one.index])}) for one in chunk]
    return ReplayResult(
        summary=_summary(step, found, distances or {}, same=recorded == algorithm),
        trajectories=tuple(
            ReplayedTrajectory(
                index=index,
                advantage=step.rows[index].advantage,
                advantage_replayed=float(step.advantages[index]),
                updates=tuple(updates),
            )
            for index, updates in sorted(found.trajectories.items())
        ),
    ), kept


@dataclass
class _Sums:
    """Sums over an update's covered trajectories under one objective."""

    numbers: list[Numbers] = field(default_factory=list)
    distance: Distance = field(default_factory=Distance)

    def aggregates(self, distance: float | None) -> Aggregates:
        return Aggregates(
            p=known_mean(one.p for one in self.numbers),
            ess=known_mean(one.ess for one in self.numbers),
            clip_fraction=known_mean(one.clip_fraction for one in self.numbers),
            loss=math.fsum(one.loss or 0.0 for one in self.numbers),
            distance_to_grpo=distance,
        )


@dataclass
class _Found:
    """Results of the chunks so far."""

    trajectories: dict[int, list[ReplayedUpdate]] = field(default_factory=lambda: defaultdict(list))
    recorded: dict[int, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    replayed: dict[int, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    covered: set[tuple[int, int]] = field(default_factory=set)  # (index, update)
    differences: dict[str, float] = field(default_factory=dict)
    undefined_in_one: int = 0

    def compare(self, name: str, recorded: float | None, replayed: float | None) -> None:
        if recorded is None or replayed is None:
            self.undefined_in_one += recorded is not replayed
            return
        self.differences[name] = max(self.differences.get(name, 0.0), abs(replayed - recorded))


def _replay_chunk(
    step: RecordedStep,
    update: int,
    chunk: Sequence[TrajectoryTokens],
    found: _Found,
    weights: dict[int, list[UpdateTokens]],
) -> None:
    """Process one update of some trajectories: numbers and sums go to `found`, tokens to `weights`."""
    present = [(one, seen) for one in chunk for seen in one.updates if seen.update == update]
    present = [(one, seen) for one, seen in present if _usable(step, one, seen)]
    if not present or step.batches[update].trajectories == 0:
        return
    log_ratio, mask = _padded([seen.log_ratio for _, seen in present])
    advantages = column([step.advantages[one.index] for one, _ in present])
    before = column([step.recorded_advantages[one.index] for one, _ in present])
    batch = step.batches[update]
    some = [one for one, _ in present]
    output = step.algorithm.loss(
        log_ratio,
        mask,
        advantages,
        batch,
        progress=step.facts.progress,
        mean_reward=step.facts.mean_reward,
        importance_sampling_ratio=_importance_sampling_ratio(step.algorithm, some, mask),
    )
    found.replayed[update].distance += output.distance
    found.recorded[update].distance += step.recorded.loss(
        log_ratio,
        mask,
        before,
        step.recorded_batches[update],
        progress=step.facts.progress,
        mean_reward=step.facts.mean_reward,
        importance_sampling_ratio=_importance_sampling_ratio(step.recorded, some, mask),
    ).distance
    weights_then, _ = _padded([seen.weight for _, seen in present])
    clipped_then, _ = _padded([seen.clipped for _, seen in present])
    found.compare("weight", 0.0, _apart(weights_then, output.token_weights, mask))
    found.compare("clipped", 0.0, _apart(clipped_then, output.clipped.float(), mask))
    columns = {name: output.trajectories[name].tolist() for name in NAMES}
    for row, (one, seen) in enumerate(present):
        length = len(seen.log_ratio)
        old = Numbers(**{name: getattr(step.seen[one.index, update], name) for name in NAMES})
        new = Numbers(**{name: _or_none(values[row]) for name, values in columns.items()})
        replayed = UpdateTokens(
            update=update,
            log_ratio=seen.log_ratio,
            weight=tuple(output.token_weights[row, :length].tolist()),
            clipped=tuple(output.clipped[row, :length].tolist()),
        )
        weights[one.index].append(replayed)
        found.trajectories[one.index].append(ReplayedUpdate(update=update, recorded=old, replayed=new))
        for name in NAMES:
            found.compare(name, getattr(old, name), getattr(new, name))
        if step.trained(one.index, update):
            found.covered.add((one.index, update))
            found.recorded[update].numbers.append(old)
            found.replayed[update].numbers.append(new)


def _summary(
    step: RecordedStep, found: _Found, distances: Mapping[int, float], *, same: bool
) -> ReplaySummary:
    trained = {key for key in step.seen if step.trained(*key)}
    updates = []
    for update in (one.update for one in step.facts.updates):
        trajectories = sum(number == update for _, number in trained)
        covered = sum(number == update for _, number in found.covered)
        before, after = found.recorded[update], found.replayed[update]
        # The recorded distance is the whole minibatch's; if part is missing, compute it for the rest.
        whole = covered == trajectories and update in distances
        distance = distances[update] if whole else before.distance.value
        found.compare("distance_to_grpo", distance, after.distance.value)
        updates.append(
            UpdateSummary(
                update=update,
                trajectories=trajectories,
                covered=covered,
                recorded=before.aggregates(distance),
                replayed=after.aggregates(after.distance.value),
            )
        )
    exact = found.undefined_in_one == 0 and all(d <= TOLERANCE for d in found.differences.values())
    return ReplaySummary(
        trajectories=len({index for index, _ in trained}),
        covered=len({index for index, _ in found.covered}),
        updates=tuple(updates),
        largest_difference=found.differences,
        undefined_in_one=found.undefined_in_one,
        reproduces=exact if same else None,
    )


def _usable(step: RecordedStep, one: TrajectoryTokens, seen: UpdateTokens) -> bool:
    """Whether the records are complete: the update's numbers, tokens, and what importance sampling needs."""
    needs_old = {
        step.recorded.importance_sampling_correction,
        step.algorithm.importance_sampling_correction,
    } != {"off"}
    return (
        (one.index, seen.update) in step.seen
        and 0 < len(seen.log_ratio) == step.rows[one.index].length
        and len(seen.weight) == len(seen.clipped) == len(seen.log_ratio)
        and not (needs_old and one.old_log_probs is None)
    )


def _importance_sampling_ratio(
    algorithm: Algorithm, chunk: Sequence[TrajectoryTokens], mask: Tensor
) -> Tensor | None:
    if algorithm.importance_sampling_correction == "off":
        return None
    old, _ = _padded([one.old_log_probs or () for one in chunk])
    sampled, _ = _padded([one.sampler_log_probs for one in chunk])
    return algorithm.importance_sampling_ratio(old, sampled, mask)


def _padded(rows: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Values [B, T] float32 with 0 on padding, and the mask [B, T]."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape)
    values[mask] = torch.tensor([value for row in rows for value in row], dtype=values.dtype)
    return values, mask


def _apart(recorded: Tensor, replayed: Tensor, mask: Tensor) -> float:
    """The largest difference on completion tokens."""
    return float(torch.where(mask, recorded - replayed, 0.0).abs().max())


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(tokens: Iterator[TrajectoryTokens], tell: Callable[[str], None]) -> Iterator[TrajectoryTokens]:
    """The chunks, with the progress reported after each."""
    for number, one in enumerate(tokens):
        if number and number % CHUNK == 0:
            tell(f"{number} trajectories")
        yield one
