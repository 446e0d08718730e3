"""Checks of a job on nodes that a file describes: python -m trainer.preflight.described

`powermean validate --cluster` runs it. It reads a DescribedTask from standard input and prints a
ValidationResult.
The model need not be here: the config of those in known_models.json is enough.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from powermean.contracts.attempts import JobError, ValidationResult
from powermean.contracts.clusters import DescribedNode, DescribedTask
from powermean.contracts.job import JobSpec
from powermean.engine_selection import EngineName, context_length
from powermean.home import Home
from powermean.memory import GIB
from trainer.data import open_source
from trainer.failures import TrainingError
from trainer.models.resolve import resolve_model
from trainer.preflight.dataset import measured
from trainer.preflight.gang import check_budget, check_engine_memory, check_heads
from trainer.preflight.limits import check_host_memory, check_memory, gpu_place
from trainer.preflight.model_facts import ModelFacts, in_folder, of_name


def main() -> int:
    """Exit status 0 whatever the result."""
    print(check(DescribedTask.model_validate_json(sys.stdin.read())).model_dump_json())
    return 0


def check(task: DescribedTask) -> ValidationResult:
    """All that is wrong. Where no node could hold the job, memory is left out: the planner says it."""
    spec, found = task.spec, list[JobError]()

    def noted(check: Callable[[], None]) -> None:
        try:
            check()
        except TrainingError as failure:
            found.append(failure.error)

    try:
        model, prompt = _model(task)
    except TrainingError as failure:
        return ValidationResult(errors=(failure.error,))
    longest = prompt + spec.rollout.max_new_tokens
    noted(lambda: _check_length(spec, model, prompt))
    noted(lambda: check_heads(spec, model.config))
    noted(lambda: check_budget(spec, longest))
    if able := [node for node in task.cluster.nodes if spec.resources.gpus and _could_hold(spec, node)]:
        node = min(able, key=lambda one: one.gpu_memory_gib)
        total, engine = int(node.gpu_memory_gib * GIB), _engine(spec, node)
        place = gpu_place(spec, total, engine, 2 * model.numbers)
        noted(lambda: check_memory(spec, model, prompt, place))
        hosts = [int(one.memory_gib * GIB) for one in able if one.memory_gib]
        noted(lambda: check_host_memory(model, min(hosts, default=None)))
        if engine == "vllm" and (place.engine or spec.resources.placement == "split"):
            noted(lambda: check_engine_memory(spec, model, total, longest))
    return ValidationResult(errors=tuple(found), tokens=longest)


def _model(task: DescribedTask) -> tuple[ModelFacts, int]:
    """The model, and the tokens of the longest prompt. Raises TrainingError (unknown_model)."""
    spec = task.spec
    uploaded = spec.data.kind == "jsonl"
    if uploaded and spec.model.name and (model := of_name(spec.model.name)):
        return model, task.prompt_tokens
    data_dir = Path(os.environ.get("POWERMEAN_DATA_DIR") or Home.find().folder / "node")
    roots = tuple(Path(one) for one in os.environ.get("POWERMEAN_MODEL_ROOTS", "").split(":") if one)
    folder = resolve_model(spec.model, data_dir, roots)
    longest = (
        task.prompt_tokens if uploaded else measured(spec, folder, open_source(spec.data, None), None).longest
    )
    return in_folder(folder), longest


def _could_hold(spec: JobSpec, node: DescribedNode) -> bool:
    """As the planner has it, one node alone."""
    resources = spec.resources
    return (
        node.gpus >= resources.gpus + spec.rollout_gpus
        and (resources.gpu_type or "").casefold() in node.gpu_type.casefold()
        and node.gpu_memory_gib >= (resources.gpu_memory_gib or 0)
        and node.labels.items() >= resources.node_labels.items()
    )


def _engine(spec: JobSpec, node: DescribedNode) -> EngineName:
    if spec.rollout.engine != "auto":
        return spec.rollout.engine
    return "vllm" if "vllm" in node.engines else "transformers"


def _check_length(spec: JobSpec, model: ModelFacts, prompt: int) -> None:
    most, new = context_length(model.config), spec.rollout.max_new_tokens
    if most is not None and prompt + new > most:
        raise TrainingError(
            "prompt_too_long",
            f"prompts of up to {prompt} tokens with max_new_tokens {new} exceed the model's {most}",
            path="rollout.max_new_tokens",
            remedy=f"at most {most - prompt}, or shorter prompts",
        )


if __name__ == "__main__":
    sys.exit(main())
