"""What is learned with AdamW's moments in float32 and in 8 bits: `python benchmarks/moments.py`

The task of benchmarks/learning.py with a model whose matrices are large enough for 8 bits, from the same
start, with the same problems and draws; and the bytes of the moments.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from learning_arms import ARMS, CONDITIONS
from learning_run import Plan, train
from learning_task import Task, warmed_up

from powermean.contracts.training import OptimizerSpec
from trainer.learner.optimizer import make_optimizer

STATES = ("float32", "8bit")
TASK = Task(length=16, alphabet=24, hidden=128, lessons=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    arm = next(one for one in ARMS if one.name == "pmpo-recipe")
    for seed in range(options.seeds):
        start = warmed_up(TASK, seed)
        for state in STATES:
            found = train(start, replace(Plan(task=TASK, steps=20), state=state), arm, CONDITIONS[0], seed)
            print(f"seed {seed} {state:8} {_short(found['curve'])} held out {found['held_out']}", flush=True)
    for state in STATES:
        print(f"{state:8} {bytes_a_weight(state):.2f} bytes a weight of a matrix of 1024 x 1024")


def bytes_a_weight(state: str) -> float:
    """Of both moments."""
    layer = torch.nn.Linear(1024, 1024, bias=False)
    optimizer = make_optimizer(layer, OptimizerSpec.model_validate({"state": state}))
    layer(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    size = 0
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[layer.weight][name]
        size += moment.codes.nbytes + moment.scale.nbytes if state == "8bit" else moment.nbytes
    return size / layer.weight.numel()


def _short(curve: object) -> str:
    assert isinstance(curve, Sequence)
    return " ".join(f"{reward:.2f}" for reward in curve[::3])


if __name__ == "__main__":
    main()
