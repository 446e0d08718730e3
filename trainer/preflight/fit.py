"""Whether a job fits, and what would make it smaller: python -m trainer.preflight.fit FILE

`powermean fit` runs it. It reads a spec and the model's folder and prints a table; exit status 1 where the
estimate is beyond the memory.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError
from powermean.home import Home
from powermean.memory import GIB, gib
from powermean.spec_yaml import read_spec
from trainer.data import open_source
from trainer.failures import TrainingError
from trainer.models.resolve import resolve_model
from trainer.preflight.dataset import measured
from trainer.preflight.footprint import Footprint, footprint
from trainer.preflight.limits import ERROR, Change, Place, changes, fits, place_of

TOO_LARGE = 1


def main() -> int:
    """Estimate the peak memory of a job's trainer."""
    parser = argparse.ArgumentParser(prog="python -m trainer.preflight.fit", description=main.__doc__)
    parser.add_argument("file", type=Path, help="a job spec in YAML or JSON")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="of the GPU; this node's if not given"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, help="tokens of the longest prompt, where the prompts are on the server"
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON instead of the table")
    options = parser.parse_args()
    try:
        spec = JobSpec.model_validate(read_spec(options.file.read_text(encoding="utf-8")).fields)
        found = estimate(options.file.name, spec, options.gpu_memory, options.prompt_tokens)
    except (PowermeanError, ValidationError, OSError) as error:
        remedy = getattr(error, "remedy", None)
        print(f"error: {error}" + (f"\nremedy: {remedy}" if remedy else ""), file=sys.stderr)
        return 2
    print(as_json(found) if options.json else table(found))
    return 0 if fits(found.needed, found.place) else TOO_LARGE


@dataclass(frozen=True)
class Fit:
    """What a job takes, where, and what would lower it."""

    name: str
    spec: JobSpec
    prompt: int  # tokens of the longest
    place: Place
    needed: Footprint
    changes: tuple[Change, ...]


def estimate(name: str, spec: JobSpec, gpu_gib: float | None, prompt_tokens: int | None) -> Fit:
    """Raises TrainingError where something about model, prompts or memory can't be known."""
    data_dir = Path(os.environ.get("POWERMEAN_DATA_DIR") or Home.find().folder / "node")
    roots = tuple(Path(one) for one in os.environ.get("POWERMEAN_MODEL_ROOTS", "").split(":") if one)
    folder = resolve_model(spec.model, data_dir, roots)
    prompt = prompt_tokens or longest_prompt(spec, folder)
    place = place_of(spec, folder, None if gpu_gib is None else int(gpu_gib * GIB))
    if place is None:
        raise TrainingError(
            "unknown_memory",
            "this node has no GPU to ask for its memory",
            path="resources.gpus",
            remedy="give --gpu-memory, e.g. --gpu-memory 80",
        )
    needed = footprint(spec, folder, prompt, cuda=place.cuda)
    if needed is None:
        raise TrainingError(
            "unknown_model",
            "the model's config.json does not name its widths",
            path="model",
            remedy="there is no estimate for such a model",
        )
    return Fit(name, spec, prompt, place, needed, tuple(changes(spec, folder, prompt, place)))


def as_json(found: Fit) -> str:
    """Sizes in bytes."""
    parts = ("weights", "gradients", "moments", "activations", "output_layer", "process")
    return json.dumps(
        {
            "fits": fits(found.needed, found.place),
            "trainer": found.needed.total,
            "parts": {part: getattr(found.needed, part) for part in parts},
            "engine": found.place.engine,
            "memory": found.place.total,
            "micro_batch_tokens": found.needed.tokens,
            "prompt_tokens": found.prompt,
            "changes": [{"change": one.text, "trainer": one.footprint.total} for one in found.changes],
        },
        indent=2,
    )


def table(found: Fit) -> str:
    """For people."""
    spec, place, needed, prompt = found.spec, found.place, found.needed, found.prompt
    verdict = "fits"
    if not fits(needed, place):
        certain = needed.total > ERROR * place.for_trainer
        verdict = "does not fit" if certain else "may not fit: the estimate may be 15 % too high"
    batch = f"micro-batches of {needed.tokens} tokens, prompts of up to {prompt}"
    if spec.training.micro_batch_tokens == "auto" and place.cuda:
        batch += "; auto makes them larger until the memory is used"
    rows = [
        ("weights", needed.weights, ""),
        ("gradients", needed.gradients, "" if needed.gradients else "they come as activations go"),
        ("AdamW's moments", needed.moments, ""),
        ("activations", needed.activations, batch),
        ("output layer", needed.output_layer, ""),
    ]
    if needed.process:
        rows.append(("Python and PyTorch", needed.process, ""))
    where = "GPU" if place.cuda else "node"
    lines = [f"{found.name}: {verdict}", "", _row("trainer, at its peak", needed.total, "")]
    lines += [_row(f"  {what}", size, note) for what, size, note in rows]
    if place.engine_name:
        lines.append(_row(f"{place.engine_name} engine", place.engine, ""))
    lines.append(_row(f"the {where} has", place.total, ""))
    if found.changes:
        lines += ["", "The trainer would take, with"]
        lines += [_row(f"  {change.text}", change.footprint.total, "") for change in found.changes]
    return "\n".join(lines)


def longest_prompt(spec: JobSpec, folder: Path) -> int:
    """Tokens of the longest of the job's prompts."""
    if spec.data.kind == "jsonl":
        raise TrainingError(
            "unknown_prompts",
            "the prompts of an uploaded dataset are on the server",
            path="data",
            remedy="give --prompt-tokens, the length of the longest one",
        )
    return measured(spec, folder, open_source(spec.data, None), None).longest


def _row(what: str, size: int, note: str) -> str:
    return f"{what:<34}{gib(size):>10}  {note}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
