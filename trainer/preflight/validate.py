"""Checks of a job that only a node can make, before it is queued: python -m trainer.preflight

Reads a ValidationTask (--task FILE, or standard input) and prints a ValidationResult as its last line (or
writes it to --out FILE). It only loads what a check needs: plain prompts need no PyTorch.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from tokenizers import Tokenizer

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.job import JobSpec
from powermean.engine_selection import choose, context_length, cpu_cache_tokens, text_config, vllm_objection
from trainer.data import Problem, PromptSource, open_source
from trainer.failures import TrainingError, cuda_unavailable
from trainer.models.resolve import resolve_model
from trainer.preflight.limits import check_adapter, check_memory, check_positions
from worker.settings import NodeSettings, NodeSettingsError

Result = TypeVar("Result")

# How many problems are measured: procedural sources have no end, and a sample of a dataset is enough.
CHECKED_STEPS = 64
CHECKED_PROBLEMS = 20_000


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
    folder = _noted(found, lambda: resolve_model(spec.model, settings.data_dir, settings.model_roots))
    if folder is not None:
        _noted(found, lambda: check_engine(spec, folder))
        _noted(found, lambda: check_adapter(spec, folder))
    longest = _noted(found, lambda: check_data(task, settings, folder))
    if folder is not None:
        prompt = longest - spec.rollout.max_new_tokens if longest is not None else 1
        _noted(found, lambda: check_memory(spec, folder, prompt))
        if longest is not None:
            _noted(found, lambda: check_positions(folder, longest))
    _noted(found, ArtefactStore(settings.artefacts_url).probe)  # the final model goes there
    return ValidationResult(errors=tuple(found), tokens=longest)


def check_data(task: ValidationTask, settings: NodeSettings, folder: Path | None) -> int | None:
    """Tokens of the longest prompt with its completion; they need the model's `folder`.

    Raises TrainingError for what is wrong with the prompts.
    """
    with tempfile.TemporaryDirectory(prefix="powermean-validate-") as scratch:
        source = open_source(task.spec.data, fetch_dataset(task.dataset, settings, Path(scratch)))
        problems = problems_of(task.spec, source)
        return check_lengths(task.spec, folder, problems) if folder is not None else None


def check_devices(spec: JobSpec) -> None:
    """Raises TrainingError (cuda_unavailable, too_few_gpus, compiler_missing) if a GPU job can't run here."""
    if spec.resources.gpus == 0:
        return
    # Imported here on purpose: PyTorch takes seconds to import, and most jobs need it for no other check.
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise cuda_unavailable()
    own = spec.rollout.sharing != "shared"  # a declared engine has its own GPUs
    wanted = spec.resources.gpus + (spec.resources.rollout_gpus if own else 0)
    if torch.cuda.device_count() < wanted:
        raise TrainingError(
            "too_few_gpus",
            f"the job asks for {wanted} GPUs with its engine's; this node has {torch.cuda.device_count()}",
            path="resources.placement" if spec.resources.rollout_gpus else "resources.gpus",
            remedy="ask for no more GPUs than a node has (placement: split needs one more)",
        )
    if not has_compiler():
        raise TrainingError(
            "compiler_missing",
            "GPU kernels are built by Triton, which finds no C compiler on this node",
            path="resources.gpus",
            remedy="install gcc or clang on the node, or name a compiler in CC",
        )


def has_compiler() -> bool:
    """Whether Triton finds what it builds its launchers with."""
    return any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))


def check_engine(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (vllm_missing, vllm_model) if vLLM is needed but can't serve the model.

    It is needed if the spec asks for it or for a publishing method that only vLLM has.
    """
    if not spec.rollout.needs_vllm:
        return
    objection = vllm_objection(folder, on_gpu=spec.resources.gpus > 0)
    if objection is None:
        return
    if spec.rollout.engine == "vllm":
        raise TrainingError(objection.code, objection.message, path="rollout.engine", remedy=objection.remedy)
    raise TrainingError(
        objection.code,
        f"rollout.publish {spec.rollout.publish} needs the vLLM engine: {objection.message}",
        path="rollout.publish",
        remedy="set rollout.publish to auto, shm or store",
    )


def fetch_dataset(dataset: ArtefactRef | None, settings: NodeSettings, scratch: Path) -> Path | None:
    """A local copy of the uploaded dataset. Raises TrainingError (dataset_missing)."""
    if dataset is None:
        return None
    try:
        return ArtefactStore(settings.artefacts_url).local_copy(dataset, scratch / "dataset.jsonl")
    except ArtefactError as error:
        raise TrainingError(
            "dataset_missing", str(error), path="data.dataset", remedy="upload the dataset again"
        ) from error


def problems_of(spec: JobSpec, source: PromptSource) -> list[Problem]:
    """Problems that the job will see, each once. Raises TrainingError (too_few_problems)."""
    seen = {problem.id: problem for problem in source.held_out(spec.evaluation.problems)}
    for step in range(1, min(spec.training.steps, CHECKED_STEPS) + 1):
        for problem in source.batch(step, spec.training.prompts_per_step, spec.seed):
            seen[problem.id] = problem
        if len(seen) > CHECKED_PROBLEMS:
            break
    return list(seen.values())


def check_lengths(spec: JobSpec, folder: Path, problems: Sequence[Problem]) -> int:
    """Tokens of the longest prompt with its completion.

    Raises TrainingError (prompt_too_long) if that exceeds the engine's limit.
    """
    lengths = count_tokens(folder, problems)
    longest = max(range(len(problems)), key=lengths.__getitem__)
    tokens = lengths[longest] + spec.rollout.max_new_tokens
    most = longest_sequence(spec, folder)
    if most is None:
        return tokens
    limit = most.tokens
    room = limit - spec.rollout.max_new_tokens
    if room < 1:
        raise TrainingError(
            "prompt_too_long",
            f"max_new_tokens ({spec.rollout.max_new_tokens}) leaves no room in {most.whose} {limit} tokens",
            path="rollout.max_new_tokens",
            remedy=f"at most {limit - lengths[longest]} for the longest prompt ({lengths[longest]} tokens)"
            f"{most.way_out}",
        )
    if lengths[longest] > room:
        raise TrainingError(
            "prompt_too_long",
            f"the longest prompt (problem {problems[longest].id}) has {lengths[longest]} tokens; with "
            f"max_new_tokens {spec.rollout.max_new_tokens} that exceeds {most.whose} {limit}",
            path="data.prompt",
            remedy=f"shorten it to {room} tokens or lower rollout.max_new_tokens{most.way_out}",
        )
    if min(lengths) < 1:
        raise TrainingError(
            "prompt_empty",
            f"the prompt of problem {problems[lengths.index(0)].id} has no tokens",
            path="data.prompt",
            remedy="a prompt needs at least one token",
        )
    return tokens


@dataclass(frozen=True)
class Longest:
    """Most tokens of prompt and completion together."""

    tokens: int
    whose: str  # limit that is
    way_out: str = ""  # one more remedy


def longest_sequence(spec: JobSpec, folder: Path) -> Longest | None:
    """The limit of model and engine; None if unknown."""
    context = context_length(text_config(folder))
    model = None if context is None else Longest(context, "the model's")
    if spec.resources.gpus or choose(spec.rollout.engine, folder, on_gpu=False) != "vllm":
        return model  # only vLLM on a CPU has a cache of known size
    cache = cpu_cache_tokens(folder, 2 if spec.model.dtype == "bfloat16" else 4)
    if cache is None or (model is not None and model.tokens <= cache):
        return model
    return Longest(cache, "vLLM's key/value cache of", ", or set rollout.engine to transformers")


def count_tokens(folder: Path, problems: Sequence[Problem]) -> list[int]:
    """Tokens of each prompt. Raises TrainingError (unknown_model, no_chat_template)."""
    file = folder / "tokenizer.json"
    if file.is_file() and not any(problem.chat for problem in problems):
        plain = Tokenizer.from_file(str(file))
        return [len(found.ids) for found in plain.encode_batch([problem.prompt for problem in problems])]
    tokenizing = importlib.import_module("trainer.learner.tokenizing")  # imports transformers: seconds
    tokenizer = tokenizing.load_tokenizer(folder)
    if any(problem.chat for problem in problems) and not tokenizer.chat_template:
        raise TrainingError(
            "no_chat_template",
            "the model's tokenizer has no chat template",
            path="data.chat",
            remedy="set data.chat to false, or use a model that was trained to chat",
        )
    return [len(ids) for ids in tokenizing.encode_prompts(tokenizer, problems)]


def _noted(found: list[JobError], check: Callable[[], Result]) -> Result | None:
    """The check's result, or None with the error added to `found`."""
    try:
        return check()
    except (TrainingError, ArtefactError) as failure:
        found.append(failure.error)
        return None
