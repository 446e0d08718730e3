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
from powermean.engine_selection import EngineName
from powermean.errors import PowermeanError
from powermean.home import Home
from powermean.memory import GIB, gib
from powermean.spec_yaml import read_spec
from trainer.data import open_source
from trainer.failures import TrainingError
from trainer.models.resolve import resolve_model
from trainer.preflight.dataset import measured
from trainer.preflight.footprint import Footprint, footprint
from trainer.preflight.limits import (
    ERROR,
    Change,
    Place,
    changes,
    fits,
    gpu_bytes_of_node,
    gpu_place,
    host_bytes,
    place_of,
    shortage,
)
from trainer.preflight.model_facts import ModelFacts, in_folder, of_name

TOO_LARGE = 1


def main() -> int:
    """Estimate the peak memory of a job's trainer."""
    parser = argparse.ArgumentParser(prog="python -m trainer.preflight.fit", description=main.__doc__)
    parser.add_argument("file", type=Path, help="a job spec in YAML or JSON")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="of the GPU; this node's if not given"
    )
    parser.add_argument("--gpus", type=int, help="on each node; the spec's if not given")
    parser.add_argument("--nodes", type=int, help="the spec's if not given")
    parser.add_argument(
        "--prompt-tokens", type=int, help="tokens of the longest prompt, where the prompts are on the server"
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON instead of the table")
    options = parser.parse_args()
    try:
        fields = read_spec(options.file.read_text(encoding="utf-8")).fields
        for name in ("gpus", "nodes"):
            if (value := getattr(options, name)) is not None:
                fields.setdefault("resources", {})[name] = value
        found = estimate(
            options.file.name,
            JobSpec.model_validate(fields),
            options.gpu_memory,
            options.prompt_tokens,
        )
    except (PowermeanError, ValidationError, OSError) as error:
        remedy = getattr(error, "remedy", None)
        print(f"error: {error}" + (f"\nremedy: {remedy}" if remedy else ""), file=sys.stderr)
        return 2
    print(as_json(found) if options.json else table(found))
    return 0 if fits(found.needed, found.place) else TOO_LARGE


@dataclass(frozen=True)
class Fit:
    """What a rank of a job takes, where, and what would lower it."""

    name: str
    spec: JobSpec
    prompt: int  # tokens of the longest
    place: Place
    needed: Footprint
    changes: tuple[Change, ...]
    host: int  # bytes of its node's memory that a GPU's model passes through


def estimate(name: str, spec: JobSpec, gpu_gib: float | None, prompt_tokens: int | None) -> Fit:
    """Raises TrainingError where something about model, prompts or memory can't be known."""
    gpu_bytes = None if gpu_gib is None else int(gpu_gib * GIB)
    model = of_name(spec.model.name) if spec.model.name and spec.resources.gpus and prompt_tokens else None
    if model is not None:
        place, prompt = place_without_model(spec, model, gpu_bytes), prompt_tokens or 0
    else:
        data_dir = Path(os.environ.get("POWERMEAN_DATA_DIR") or Home.find().folder / "node")
        roots = tuple(Path(one) for one in os.environ.get("POWERMEAN_MODEL_ROOTS", "").split(":") if one)
        folder = resolve_model(spec.model, data_dir, roots)
        model, place = in_folder(folder), place_of(spec, folder, gpu_bytes)
        prompt = prompt_tokens or longest_prompt(spec, folder)
    if place is None:
        raise TrainingError(
            "unknown_memory",
            "this node has no GPU to ask for its memory",
            path="resources.gpus",
            remedy="give --gpu-memory, e.g. --gpu-memory 80",
        )
    needed = footprint(spec, model, prompt, cuda=place.cuda, room=place.for_trainer)
    if needed is None:
        raise TrainingError(
            "unknown_model",
            "the model's config.json does not name its widths",
            path="model",
            remedy="there is no estimate for such a model",
        )
    found = tuple(changes(spec, model, prompt, place))
    return Fit(name, spec, prompt, place, needed, found, host_bytes(model) if place.cuda else 0)


def place_without_model(spec: JobSpec, model: ModelFacts, gpu_bytes: int | None) -> Place | None:
    """A GPU for a model that is not here; its engine is vLLM unless the spec says otherwise."""
    total = gpu_bytes or gpu_bytes_of_node()
    engine: EngineName = "transformers" if spec.rollout.engine == "transformers" else "vllm"
    return None if total is None else gpu_place(spec, total, engine, 2 * model.numbers)


def as_json(found: Fit) -> str:
    """Sizes in bytes."""
    parts = ("weights", "gradients", "moments", "gathered", "activations", "output_layer", "process")
    return json.dumps(
        {
            "fits": fits(found.needed, found.place),
            "ranks": found.needed.layout.ranks,
            "shards": found.needed.layout.shards,
            "trainer": found.needed.total,
            "parts": {part: getattr(found.needed, part) for part in parts},
            "engine": found.place.engine,
            "memory": found.place.total,
            "host": found.host,
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
        certain = shortage(needed, place) > ERROR
        verdict = "does not fit" if certain else "may not fit: the estimate may be 15 % too high"
    batch = f"micro-batches of {needed.tokens} tokens, prompts of up to {prompt}"
    if spec.training.micro_batch_tokens == "auto" and place.cuda:
        batch += "; auto makes them larger until the memory is used"
    rows = [
        ("weights", needed.weights, ""),
        ("gradients", needed.gradients, "" if needed.gradients else "they come as activations go"),
        ("AdamW's moments", needed.moments, ""),
        *([("gathered layers", needed.gathered, "")] if needed.gathered else []),
        ("activations", needed.activations, batch),
        ("output layer", needed.output_layer, ""),
    ]
    if needed.process:
        rows.append(("Python and PyTorch", needed.process, ""))
    where = "GPU" if place.cuda else "node"
    ranks = needed.layout.ranks
    who = "trainer, at its peak" if ranks == 1 else "each rank, at its peak"
    lines = [
        f"{found.name}: {verdict}",
        "",
        _row(who, needed.total, needed.layout.words if ranks > 1 else ""),
    ]
    lines += [_row(f"  {what}", size, note) for what, size, note in rows]
    if place.engine_name:
        asleep = f"of it {gib(place.total - place.for_trainer)} while it sleeps" if place.sleeps else ""
        lines.append(_row(f"{place.engine_name} engine", place.engine, asleep))
    lines.append(_row(f"the {where} has", place.total, ""))
    if found.host:
        note = "on the first node" if needed.layout.shards > 1 else ""
        if needed.layout.shards == 1 and spec.resources.ranks_per_node > 1:
            note = "for each rank, in turns where the host has less"
        lines.append(_row("host's memory, to load the model", found.host, note))
    if found.changes:
        lines += ["", f"{'The trainer' if ranks == 1 else 'Each rank'} would take, with"]
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
