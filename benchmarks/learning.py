"""Does it learn better? Every objective on the same small task, from the same start, on as many tokens.

    python benchmarks/learning.py run             # every arm, condition and seed; stop and go on as you like
    python benchmarks/learning.py report          # tables of what is there so far
    python benchmarks/learning.py report --write  # the same into docs/results.md, with the plot

docs/results.md says what is compared, and what came out.
"""

import argparse
import json
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
from learning_arms import ARMS, CONDITIONS, Arm, Condition
from learning_report import RAW_RESULTS, Record, read_records, tables, write_document
from learning_run import Plan, held_out, train
from learning_task import warmed_up

OUT = Path(__file__).parent / ".learning" / "runs.jsonl"


def seeds(text: str) -> list[int]:
    """`0-9` or `4`."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def pending(done: Iterable[Record], wanted: Iterable[int]) -> list[tuple[int, Condition, Arm]]:
    """Runs that have no record yet; seeds outermost, so that a part of the sweep is balanced."""
    known = {(record.seed, record.condition, record.arm) for record in done}
    every = [(seed, condition, arm) for seed in wanted for condition in CONDITIONS for arm in ARMS]
    return [run for run in every if (run[0], run[1].name, run[2].name) not in known]


def sweep(out: Path, wanted: list[int], plan: Plan) -> None:
    """Append a record for each pending run, with the time that is left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = pending(read_records(out), wanted)
    print(f"{len(runs)} runs to do, {plan.tokens} completion tokens each", flush=True)
    warmed, begun = -1, time.monotonic()
    for number, (seed, condition, arm) in enumerate(runs):
        if seed != warmed:
            start, warmed = warmed_up(plan.task, seed), seed
            before = held_out(start, plan, seed)
        record = train(start, plan, arm, condition, seed) | {"held_out_before": before}
        with out.open("a") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
        left = (time.monotonic() - begun) / (number + 1) * (len(runs) - number - 1)
        print(
            f"{number + 1}/{len(runs)} seed {seed} {condition.name} {arm.name}: held-out reward "
            f"{record['held_out']['sampled_reward']:.3f}, {timedelta(seconds=round(left))} left",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train; about 4 CPU seconds a run, 30 runs a seed")
    run.add_argument(
        "--out", type=Path, default=OUT, help="records, one JSON line a run (default: %(default)s)"
    )
    run.add_argument("--seeds", type=seeds, default=seeds("0-9"), help="first-last, e.g. 0-9 (the default)")
    report = commands.add_parser("report", help="tables from the records")
    report.add_argument(
        "--records",
        type=Path,
        default=RAW_RESULTS,
        help="what `run` wrote (default: the committed %(default)s)",
    )
    report.add_argument("--write", action="store_true", help="into docs/results.md, with the plot")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share
    if options.command == "run":
        sweep(options.out, options.seeds, Plan())
        return
    records = read_records(options.records)
    if not records:
        parser.error(f"no records in {options.records}: `run` writes them")
    if options.write:
        write_document(records)
    else:
        print(tables(records))


if __name__ == "__main__":
    main()
