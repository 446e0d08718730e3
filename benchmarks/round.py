"""A round of the main job beside TRL's GRPOTrainer, on a CPU: `python benchmarks/round.py`.

round: what `make demo` does between two publishes of weights, and one publish: sampling a batch of 8 x 8
completions with the transformers engine, grading, four updates, the probe after the publish, records. TRL's
is generating with transformers' `generate` in its own process, the same grading, four updates.

update: an update alone, of 4 groups of 8 random completions, a group in each micro-batch on both sides.

Both have the same weights in float32, prompts, group size, limits, grader, minibatches, epochs and optimiser.
Each side is a process of its own, warmed up by one turn. They take turns in pairs, ours first, then theirs.
What can't be made the same:

- The objective: ours is PMPO, TRL's GRPO.
- A stop string: ours ends at the text, `generate` at any token with the text in it, which is cheaper.
- TRL samples no log-probs; it computes those of the start of a round in a pass of their own. Ours come with
  the first pass of an update where they can.
- TRL shuffles the rows of a batch: its minibatches are of 32 rows, ours of 4 groups.
- Groups whose rewards are all equal cost TRL as much as others.
- Threads that wait sleep (OMP_WAIT_POLICY), as a node starts ours; TRL's too, or other load would stop it.

Memory is what a side's processes have in RAM together, at most, after the warm-up; shared pages count once.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rollouts_models import Models
from rollouts_service import told
from rollouts_table import Table
from round_processes import Side, Turn, side
from round_work import Work

from powermean.home import Home
from worker.launcher import COMPACT, PATIENT

PARTS = ("round", "update")
UPDATES = ((64, 64, 2.5), (64, 256, 1.5))  # tokens of prompts and of completions, how many times as fast
UPDATE_MEMORY = 0.5
ROUND_SPEED, ROUND_MEMORY = 4.0, 0.8


@dataclass(frozen=True)
class Compared:
    """Turns of both sides, and their peaks in bytes."""

    ours: list[Turn]
    theirs: list[Turn]
    peaks: tuple[int, int]

    def medians(self, of: Callable[[Turn], float]) -> tuple[float, float]:
        """Ours and theirs."""
        ours, theirs = (statistics.median(map(of, turns)) for turns in (self.ours, self.theirs))
        return ours, theirs


def compare(part: str, pairs: int, *given: Any) -> Compared:
    """Turns in pairs; who is first changes."""
    with (
        side("round_ours", part, *given, environment=COMPACT) as one,
        side("round_trl", part, *given) as other,
    ):
        found: dict[str, list[Turn]] = {"ours": [], "TRL": []}
        for number in range(pairs):
            order: list[tuple[str, Side]] = [("ours", one), ("TRL", other)]
            for name, each in order if number % 2 == 0 else reversed(order):
                turn = each.turn()
                found[name].append(turn)
                told(f"pair {number + 1}: {name} {turn.seconds:.2f} s, {turn.cpu_seconds:.2f} CPU s")
        return Compared(found["ours"], found["TRL"], (one.peak, other.peak))


def pairs_table(title: str, found: Compared) -> Table:
    """Each pair, and the medians."""
    table = Table(
        title,
        ("pair", "ours s", "TRL s", "TRL / ours", "ours CPU s", "TRL CPU s", "TRL / ours"),
        left=1,
    )
    rows = [
        (str(number + 1), (ours.seconds, theirs.seconds), (ours.cpu_seconds, theirs.cpu_seconds))
        for number, (ours, theirs) in enumerate(zip(found.ours, found.theirs, strict=True))
    ]
    whole = found.medians(lambda turn: turn.seconds), found.medians(lambda turn: turn.cpu_seconds)
    for name, (s, t), (cpu_s, cpu_t) in (*rows, ("median", *whole)):
        table.add(
            *(name, f"{s:.2f}", f"{t:.2f}", f"{t / s:.2f}"),
            *(f"{cpu_s:.2f}", f"{cpu_t:.2f}", f"{cpu_t / cpu_s:.2f}"),
        )
    for name, turns in (("ours", found.ours), ("TRL", found.theirs)):
        facts = {key: statistics.median(turn.facts[key] for turn in turns) for key in turns[0].facts}
        if facts:
            table.notes.append(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in facts.items()))
    return table


def goals(found: Compared, speed: float, memory: float) -> list[str]:
    """Reached or not: by the clock, and by memory."""
    ours, theirs = found.medians(lambda turn: turn.seconds)
    mine, other = (peak / 2**30 for peak in found.peaks)
    return [
        goal(f"{theirs / ours:.2f} times as fast as TRL, the goal is {speed}", theirs / ours >= speed),
        goal(
            f"memory {mine:.2f} GiB, TRL's {other:.2f}: {mine / other:.2f}, the goal is {memory}",
            mine / other <= memory,
        ),
    ]


def goal(text: str, reached: bool) -> str:
    return f"{'reached' if reached else 'not reached'}: {text}"


def tables(options: argparse.Namespace, work: Work) -> Iterator[Table]:
    """One a part, as soon as it is measured."""
    if "round" in options.part:
        found = compare("rounds", options.pairs, work)
        table = pairs_table(f"A round of the main job on {work.name}", found)
        table.notes += goals(found, ROUND_SPEED, ROUND_MEMORY)
        yield table
    for prompt, completion, speed in UPDATES if "update" in options.part else ():
        sizes = (prompt // 16, completion // 16) if options.tiny else (prompt, completion)
        found = compare("updates", options.pairs, work, *sizes)
        table = pairs_table(f"An update on {work.name}, prompt {sizes[0]}, completion {sizes[1]}", found)
        table.notes += goals(found, speed, UPDATE_MEMORY)
        yield table


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all by default")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="an untrained toy model: quick, says nothing")
    parser.add_argument(
        "--data-dir", type=Path, default=Home.find().folder / "node", help="where the converted model lies"
    )
    options = parser.parse_args()
    options.part = options.part or list(PARTS)
    return options


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded, and the sides have it, too
        quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], PATIENT | quiet | os.environ)
    options = parsed()
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads each, load average {load} at the start")
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-models-") as scratch:
        work = Work(Models(options.data_dir, Path(scratch)), "tiny" if options.tiny else "smollm2")
        assert work.folder.is_dir()  # made now, not by both sides at once
        for table in tables(options, work):
            print(f"\n{table.text()}", flush=True)


if __name__ == "__main__":
    main()
