"""Fills the tables of docs/scale.md and draws its figure: `python benchmarks/scale.py`

What fits is the estimate of `powermean fit`. What ranks send was measured by
`python benchmarks/ranks.py --out docs/scale-measured.json`. The step on many GPUs is simulated
(scale_simulation.py).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.scale_figure import draw
from benchmarks.scale_simulation import CLUSTER, SIZES, WORK, Step, simulate
from powermean.contracts.job import JobSpec
from powermean.memory import GIB
from trainer.preflight.footprint import footprint
from trainer.preflight.gang import check_engine_memory, check_heads
from trainer.preflight.limits import TrainingError, fits, gpu_place
from trainer.preflight.model_facts import ModelFacts, of_name

DOCS = Path(__file__).parent.parent / "docs"
PAGE, MEASURED, FIGURE = DOCS / "scale.md", DOCS / "scale-measured.json", DOCS / "images/scale.svg"
GPU_GIB, PROMPT, MOST = 79.6, 512, 32768
MODELS = [f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")]
KINDS = {
    "all weights": {},
    "8 bits": {"optimizer": {"state": "8bit"}},
    "LoRA": {"model": {"lora": {}}},
}


def main() -> None:
    """Write the page's tables and the figure."""
    PAGE.write_text(page())
    draw([simulate(name, gpus) for name in SIZES for gpus in SIZES[name]], FIGURE)


def page() -> str:
    """docs/scale.md with the tables as they are now."""
    text = PAGE.read_text()
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + make() + end + rest.split(end)[1]
    return text


def fit_table() -> str:
    """Longest completions by model, for one GPU and for eight."""
    rows = []
    for name in MODELS:
        cells = [longest(name, kind, gpus) for gpus in (1, 8) for kind in KINDS]
        rows.append([name.removeprefix("Qwen/"), *(f"{tokens:,}" if tokens else "–" for tokens in cells)])
    heads = [f"{gpus} GPU{'s' * (gpus > 1)}, {kind}" for gpus in (1, 8) for kind in KINDS]
    return table(["model", *heads], rows)


def longest(name: str, kind: str, gpus: int) -> int:
    """The longest completion of a job that fits, in steps of 256 tokens; 0: none does."""
    model = of_name(name)
    assert model is not None
    low, high = 0, MOST // 256
    while low < high:
        middle = (low + high + 1) // 2
        if any(holds(spec, model) for spec in jobs(name, kind, gpus, 256 * middle)):
            low = middle
        else:
            high = middle - 1
    return 256 * low


def jobs(name: str, kind: str, gpus: int, tokens: int) -> list[JobSpec]:
    """With the engine's replicas on one GPU each, or on more; the model sharded where there are several."""
    found = []
    for parts in (1, 2, 4, 8):
        if gpus % parts:
            continue
        fields = {
            "name": "fit",
            "model": {"name": name, "dtype": "bfloat16"},
            "data": {"kind": "jsonl", "dataset": "0", "prompt": "{q}", "answer_field": "a"},
            "reward": {"kind": "math_verify"},
            "rollout": {
                "max_new_tokens": tokens,
                "gpus_per_replica": parts,
                "replicas": gpus // parts,
                "sharing": "own",
            },
            "training": {
                "steps": 200,
                "prompts_per_step": 64,
                "weights": "bfloat16",
                "gradient_checkpointing": True,
                "parallel": "shard",
            },
            "resources": {"gpus": gpus},
        }
        for room, values in KINDS[kind].items():
            fields[room] = fields.get(room, {}) | values  # type: ignore[operator]
        found.append(JobSpec.model_validate(fields))
    return found


def holds(spec: JobSpec, model: ModelFacts) -> bool:
    """As validation has it."""
    total, tokens = int(GPU_GIB * GIB), PROMPT + spec.rollout.max_new_tokens
    place = gpu_place(spec, total, "vllm", 2 * model.numbers)
    needed = footprint(spec, model, PROMPT, cuda=True, room=place.for_trainer)
    try:
        check_heads(spec, model.config)
        check_engine_memory(spec, model, total, tokens)
    except TrainingError:
        return False
    return needed is not None and fits(needed, place)


def measured_table() -> str:
    """What benchmarks/ranks.py found."""
    rows = []
    for one in json.loads(MEASURED.read_text()):
        sent, weights = one["sent"], 4 * one["weights"]
        rows.append(
            [
                f"{one['ranks']}",
                "" if one["ranks"] == 1 else one["how"],
                f"{sent / 1e6:.1f}",
                f"{sent / weights:.2f}",
                f"{one['held'] / 1e6:.1f}",
                f"{one['cpu_seconds']:.2f}",
                f"{one['norm']:.6f}",
            ]
        )
    heads = [
        "ranks",
        "",
        "MB sent",
        "in copies of the weights",
        "MB held by each",
        "CPU s, all ranks",
        "norm",
    ]
    return table(heads, rows)


def simulated_table() -> str:
    """Seconds of a step's parts."""
    rows = []
    for name in SIZES:
        for gpus in SIZES[name]:
            step = simulate(name, gpus)
            parts = [f"{getattr(step, part):.0f}" for part in Step.PARTS]
            behind = f"{step.communication / step.updating:.0%}"
            rows.append(
                [name.removeprefix("Qwen/"), f"{gpus}", step.how, *parts, f"{step.total:.0f}", behind]
            )
    return table(["model", "GPUs", "held", *Step.PARTS, "step, s", "exchange / computing"], rows)


def assumptions() -> str:
    """What the simulation takes for given."""
    return table(["", "value", "from"], [*CLUSTER.rows(), *WORK.rows()])


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---" if place == 0 else "---:" for place in range(len(heads))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "fit": fit_table,
    "measured": measured_table,
    "assumptions": assumptions,
    "simulated": simulated_table,
}

if __name__ == "__main__":
    main()
