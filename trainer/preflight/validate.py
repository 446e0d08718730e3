"""Checks of a job that only a node can make, before it is queued: python -m trainer.preflight

Reads a ValidationTask (--task FILE, or standard input) and prints a ValidationResult as its last line (or
writes it to --out FILE). It only loads what a check needs: plain prompts of a packaged model need no PyTorch.
"""

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.job import JobSpec
from powermean.engine_selection import text_config, vllm_objection
from powermean.memory import total_bytes
from trainer.failures import TrainingError, check_installed, cuda_unavailable
from trainer.models.resolve import resolve_model
from trainer.preflight.dataset import check_answers, check_data
from trainer.preflight.disk_space import check_disk
from trainer.preflight.gang import check_budget, check_engine_memory, check_heads
from trainer.preflight.limits import check_adapter, check_host_memory, check_memory, check_positions, place_of
from trainer.preflight.model_facts import in_folder
from worker.settings import NodeSettings, NodeSettingsError

Result = TypeVar("Result")


def main() -> int:
    """Check a job. Exit status 0 whatever the result, unless the checks themselves failed."""
    parser = argparse.ArgumentParser(prog="python -m trainer.preflight", description=main.__doc__)
    parser.add_argument("--task", type=Path, help="file with the ValidationTask; standard input without it")
    parser.add_argument("--out", type=Path, help="file for the ValidationResult; standard output without it")
    arguments = parser.parse_args()
    text = arguments.task.read_text() if arguments.task else sys.stdin.read()
    try:
        settings = NodeSettings.read()
        task = ValidationTask.model_validate_json(text)
    except (NodeSettingsError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = validate(task, settings).model_dump_json()
    if arguments.out:
        arguments.out.write_text(result + "\n")
    else:
        print(result)
    return 0


def validate(task: ValidationTask, settings: NodeSettings) -> ValidationResult:
    """All errors; checks that depend on a failed one are skipped."""
    found: list[JobError] = []
    spec = task.spec
    _noted(found, lambda: check_devices(spec))
    _noted(found, lambda: check_installed(spec.optimizer))
    roots, allowed = settings.model_roots, settings.allowed_models
    # A fork's model has the config, the tokenizer and the shapes of the one that its line of jobs began with.
    first = spec.model if task.origin is None else task.origin.first_model
    folder = _noted(found, lambda: resolve_model(first, settings.data_dir, roots, allowed))
    if folder is not None:
        _noted(found, lambda: check_engine(spec, folder))
        built = len(found)
        _noted(found, lambda: check_weights(folder, settings))
        if len(found) == built:
            _noted(found, lambda: check_adapter(spec, folder))
    before = len(found)
    longest = _noted(found, lambda: check_data(task, settings, folder))
    if len(found) == before:
        _noted(found, lambda: check_answers(task, settings))
    if folder is not None:
        prompt = longest - spec.rollout.max_new_tokens if longest is not None else 1
        _noted(found, lambda: check_node_memory(spec, folder, prompt))
        if longest is not None:
            _noted(found, lambda: check_budget(spec, longest))
            _noted(found, lambda: check_positions(folder, longest))
    before = len(found)
    _noted(found, ArtefactStore(settings.artefacts_url, existing=True).probe)  # the final model goes there
    if folder is not None and len(found) == before:
        _noted(found, lambda: check_disk(spec, folder, settings))
    return ValidationResult(errors=tuple(found), tokens=longest)


def check_weights(folder: Path, settings: NodeSettings) -> None:
    """Raises TrainingError (model_mismatch, unknown_model): see trainer.policy.model_files."""
    if folder.is_relative_to(settings.data_dir / "models"):  # we wrote it
        return
    # Imported here on purpose: PyTorch takes seconds to import, and a packaged model is checked without it.
    importlib.import_module("trainer.policy.model_files").check_weights(folder)


def check_devices(spec: JobSpec) -> None:
    """Raises TrainingError (cuda_unavailable, too_few_gpus, compiler_missing) if it can't run."""
    if spec.resources.gpus == 0:
        return
    # Imported here on purpose: PyTorch takes seconds to import, and most jobs need it for no other check.
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise cuda_unavailable()
    own = spec.rollout.sharing != "shared"  # a declared engine has its own GPUs
    wanted = spec.resources.gpus + (spec.rollout_gpus if own else 0)
    if torch.cuda.device_count() < wanted:
        raise TrainingError(
            "too_few_gpus",
            f"the job asks for {wanted} GPUs with its engine's; this node has {torch.cuda.device_count()}",
            path="resources.placement" if spec.rollout_gpus else "resources.gpus",
            remedy="ask for no more GPUs than a node has (with placement: split the engine has its own)",
        )
    if not has_compiler():
        raise TrainingError(
            "compiler_missing",
            "GPU kernels are built by Triton, which finds no C compiler on this node",
            path="resources.gpus",
            remedy="install gcc or clang on the node, or name a compiler in CC",
        )


def check_node_memory(spec: JobSpec, folder: Path, prompt_tokens: int) -> None:
    """Raises TrainingError (not_enough_memory) for a trainer or an engine that this node can't hold."""
    place, model = place_of(spec, folder), in_folder(folder)
    check_memory(spec, model, prompt_tokens, place)
    if spec.resources.gpus:
        check_host_memory(model, total_bytes())
    split = spec.resources.placement == "split" and spec.rollout.sharing != "shared"
    if place is not None and place.cuda and (split or place.engine_name == "vllm"):
        check_engine_memory(spec, model, place.total, prompt_tokens + spec.rollout.max_new_tokens)


def has_compiler() -> bool:
    """Whether Triton finds what it builds its launchers with."""
    return any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))


def check_engine(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (vllm_missing, vllm_model, undivided_heads) if vLLM can't serve the model.

    It must if the spec asks for it or for something that only vLLM has.
    """
    rollout, size = spec.rollout, spec.rollout.gpus_per_replica
    if not rollout.needs_vllm:
        return
    objection = vllm_objection(folder, on_gpu=spec.resources.gpus > 0)
    if objection is not None and rollout.engine == "vllm":
        raise TrainingError(objection.code, objection.message, path="rollout.engine", remedy=objection.remedy)
    if objection is not None and size > 1:
        raise TrainingError(
            objection.code,
            f"an engine of {size} GPUs must be vLLM: {objection.message}",
            path="rollout.gpus_per_replica",
            remedy="set rollout.gpus_per_replica to 1",
        )
    if objection is not None:
        raise TrainingError(
            objection.code,
            f"rollout.publish {rollout.publish} needs the vLLM engine: {objection.message}",
            path="rollout.publish",
            remedy="set rollout.publish to auto, shm or store",
        )
    check_heads(spec, text_config(folder))


def _noted(found: list[JobError], check: Callable[[], Result]) -> Result | None:
    """The check's result, or None with the error added to `found`."""
    try:
        return check()
    except (TrainingError, ArtefactError) as failure:
        found.append(failure.error)
        return None
