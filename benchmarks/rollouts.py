"""How fast rollouts are: `python benchmarks/rollouts.py`. Named so, as `rollout` is the package it measures.

tokens: tokens a second of both engines, through the rollout service, and of plain `generate`.
publish: seconds until an engine samples with new weights, by way and size.
steps: the main job's seconds a step on both engines, with max_staleness 0 and 1.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rollouts_models import MODELS, Models
from rollouts_publish import publish_table
from rollouts_steps import steps_table
from rollouts_table import Table
from rollouts_tokens import tokens_table

from powermean.cli.signals import raise_on_signals
from powermean.engine_selection import vllm_installed
from powermean.home import Home
from worker.launcher import PATIENT

PARTS = ("tokens", "publish", "steps")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all by default")
    parser.add_argument("--model", default="smollm2", choices=MODELS, help="tiny: quick, says nothing")
    parser.add_argument("--engine", action="append", choices=["vllm", "transformers"], help="all there are")
    parser.add_argument("--rounds", type=int, default=5, help="of tokens and publish; medians are taken")
    parser.add_argument("--steps", type=int, default=6, help="of each job")
    parser.add_argument(
        "--data-dir", type=Path, default=Home.find().folder / "node", help="where the converted model lies"
    )
    options = parser.parse_args()
    options.part = options.part or list(PARTS)
    options.engine = options.engine or [*(["vllm"] if vllm_installed() else []), "transformers"]
    return options


def tables(options: argparse.Namespace, scratch: Path) -> Iterator[Table]:
    """One a part, as soon as it is measured."""
    models = Models(options.data_dir, scratch)
    if "tokens" in options.part:
        yield tokens_table(models, options.model, options.engine, options.rounds)
    if "publish" in options.part:
        names = ["tiny"] if options.model == "tiny" else ["smollm2", "tiny"]
        yield publish_table(models, names, options.engine, options.rounds)
    if "steps" in options.part:
        yield steps_table(models, options.model, options.engine, options.steps)


def load() -> str:
    """How busy the machine is, by its own count."""
    return "load average " + " ".join(f"{one:.1f}" for one in os.getloadavg())


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded, and the engines have it, too
        os.execve(sys.executable, [sys.executable, *sys.argv], PATIENT | os.environ)
    options = parsed()
    raise_on_signals()  # what was started is ended and what was written removed, also on SIGTERM
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads each, {load()} at the start")
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-models-") as scratch:
        for table in tables(options, Path(scratch)):
            print(f"\n{table.text()}\n{load()} after it", flush=True)


if __name__ == "__main__":
    main()
