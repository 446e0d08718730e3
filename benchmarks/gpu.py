"""The trainer on one GPU: correct first, then fast and small beside TRL's GRPOTrainer.

    python benchmarks/gpu.py [--sections laws,learner,...] [--budget SECONDS] [--out FOLDER] [--tiny]

Made for a short lease of a machine without a network: random weights, and of packages only torch,
transformers, peft, pydantic and, for the comparison, trl with datasets. Each section has a time limit of its
own and catches its own errors; all lines are printed once more at the end. --tiny runs the same code on a CPU
with toy sizes, so that it can't rot.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the worker's launcher has it
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from gpu_bench import Bench  # noqa: E402

# name -> module and function, and the seconds that it may take
SECTIONS = {
    "env": ("gpu_bench:environment", 30),
    "laws": ("gpu_laws:laws", 90),
    "nan": ("gpu_laws:nan_hunt", 60),
    "objective": ("gpu_laws:objective", 40),
    "learner": ("gpu_laws:learner", 60),
    "loop": ("gpu_loop:loop", 90),
    "attention": ("gpu_parts:attention", 40),
    "variants": ("gpu_speed:variants", 150),
    "profile": ("gpu_speed:profile", 60),
    "head": ("gpu_parts:heads", 60),
    "trl": ("gpu_speed:against_trl", 200),
    "long": ("gpu_speed:long_group", 60),
    "engine": ("gpu_engine:section", 90),
}


def main() -> int:
    """Run the sections in order. Exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, in order, separated by commas")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all of them")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    options = parser.parse_args()
    if options.tiny:
        importlib.import_module("torch").set_num_threads(1)  # toys are too small for more
    bench = Bench(tiny=options.tiny, out=options.out, budget_s=options.budget)
    for name in options.sections.split(","):
        if name not in SECTIONS:
            parser.error(f"no section {name}: choose among {', '.join(SECTIONS)}")
        where, seconds = SECTIONS[name]
        module, _, function = where.partition(":")
        bench.run(name, lambda m=module, f=function: getattr(importlib.import_module(m), f)(bench), seconds)
    print("\n".join(["", "== all lines", *bench.lines]))
    print(json.dumps({"failed": bench.failures}))
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
