"""The trainer's peak memory on a CPU beside its estimate: `python benchmarks/memory.py`.

Each case is two updates of the packaged SmolLM2 in a process of its own, by the settings of a job; in the
second the optimiser's moments are in place. The peak is the process's own (VmHWM). benchmarks/gpu.py prints
estimates for a GPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from gpu_bench import rewards, rollouts  # noqa: E402

from powermean.contracts.job import JobSpec  # noqa: E402
from powermean.home import Home  # noqa: E402
from trainer.forks.start import Start  # noqa: E402
from trainer.learner.training_batch import TrainingBatch  # noqa: E402
from trainer.learner_setup import make_learner  # noqa: E402
from trainer.models.resolve import resolve_model  # noqa: E402
from trainer.preflight.footprint import footprint  # noqa: E402
from trainer.preflight.model_facts import in_folder  # noqa: E402
from worker.launcher import COMPACT, PATIENT  # noqa: E402

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
GIB = 1 << 30
# name -> prompt and completion tokens, groups, model and training settings
CASES: dict[str, tuple[int, int, int, dict[str, Any], dict[str, Any]]] = {
    "demo's size": (16, 6, 4, {}, {}),
    "64/64": (64, 64, 4, {}, {}),
    "64/64, 512 tokens": (64, 64, 4, {}, {"micro_batch_tokens": 512}),
    "64/64, all at once": (64, 64, 4, {}, {"micro_batch_tokens": 8192}),
    "64/256": (64, 256, 2, {}, {}),
    "64/64, checkpointing": (64, 64, 4, {}, {"micro_batch_tokens": 8192, "gradient_checkpointing": True}),
    "64/64, LoRA": (64, 64, 4, {"lora": {"rank": 8}}, {}),
    "64/64, bfloat16": (64, 64, 4, {"dtype": "bfloat16"}, {}),
    "64/64, bfloat16 weights": (64, 64, 4, {"dtype": "bfloat16"}, {"weights": "bfloat16"}),
}


def spec_of(case: str) -> tuple[JobSpec, int]:
    """The case's job, and the tokens of its prompts."""
    prompt, completion, groups, model, training = CASES[case]
    spec = {
        "name": "memory",
        "model": {"name": MODEL} | model,
        "algorithm": {"name": "pmpo"},
        "data": {"kind": "arithmetic", "tasks": [{"operator": "+", "low": 1, "high": 9}]},
        "reward": {"kind": "exact_match"},
        "rollout": {"max_new_tokens": completion},
        "training": {"steps": 1, "prompts_per_step": groups, "minibatches": 1} | training,
    }
    return JobSpec.model_validate(spec), prompt


def update(case: str, folder: Path) -> None:
    """Two updates in this process; its peak as JSON."""
    spec, prompt = spec_of(case)
    learner = make_learner(Start(folder, folder.name), spec, 0)
    groups = spec.training.prompts_per_step
    given = rollouts(
        learner.policy.plain_model.config.vocab_size, prompt, spec.rollout.max_new_tokens, groups=groups
    )
    graded = rewards(groups)
    batch = TrainingBatch.start(
        1,
        given,
        advantages=learner.algorithm.advantages(graded, given.group),
        kept=learner.algorithm.keep(graded, given.group),
        rewards=graded,
        progress=0.0,
        max_new_tokens=spec.rollout.max_new_tokens,
    )
    for number in range(2):
        learner.update(batch, range(groups), number)
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(json.dumps({"peak": int(peak[1]) << 10}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="run one, in this process")
    parser.add_argument(
        "--data-dir", type=Path, default=Home.find().folder / "node", help="where the converted model lies"
    )
    options = parser.parse_args()
    folder = resolve_model(spec_of("64/64")[0].model, options.data_dir, ())
    if options.case:
        return update(options.case, folder)
    print(f"SmolLM2-135M, PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{'case':<26} {'peak GiB':>9} {'estimate':>9} {'ratio':>6}")
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--data-dir", str(options.data_dir)]
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=PATIENT | COMPACT | os.environ
        ).stdout
        peak = json.loads(found.strip().splitlines()[-1])["peak"]
        spec, prompt = spec_of(case)
        estimated = footprint(spec, in_folder(folder), prompt, cuda=False)
        assert estimated is not None
        ratio = estimated.total / peak
        print(f"{case:<26} {peak / GIB:9.2f} {estimated.total / GIB:9.2f} {ratio:6.2f}", flush=True)
    return None


if __name__ == "__main__":
    main()
