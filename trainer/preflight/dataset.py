"""Whether every prompt fits the model and every answer can be given, before a job is queued."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import ValidationTask
from powermean.contracts.data import JsonlSource
from powermean.contracts.job import JobSpec
from powermean.engine_selection import choose, context_length, cpu_cache_tokens, text_config
from trainer.data import PromptSource, open_source
from trainer.data.encoding import PromptEncoder, of_file
from trainer.failures import TrainingError
from trainer.screening import Answers, Prompts, Shelf, judge, lines, measure, named
from worker.settings import NodeSettings

# From this share on, answers that nothing can match are refused; below, their rows are left out of the run.
REFUSED_SHARE = 0.05


@dataclass(frozen=True)
class Checked:
    """A job's prompts, measured. `name` gives the problem of a row."""

    prompts: Prompts
    name: Callable[[int], str]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.prompts.tokens.max())


def open_data(task: ValidationTask, settings: NodeSettings, scratch: Path) -> PromptSource:
    """The job's prompts. Raises TrainingError (dataset_missing, bad_dataset, too_few_problems)."""
    return open_source(task.spec.data, fetch_dataset(task.dataset, settings, scratch))


def check_data(task: ValidationTask, settings: NodeSettings, folder: Path | None) -> int | None:
    """Tokens of the longest prompt with its completion; they need the model's `folder`.

    Raises TrainingError for what is wrong with the prompts.
    """
    with tempfile.TemporaryDirectory(prefix="powermean-validate-") as scratch:
        source = open_data(task, settings, Path(scratch))
        shelf = None if task.dataset is None else Shelf(settings.data_dir, task.dataset.sha256)
        if folder is None:
            return None
        return check_lengths(task.spec, folder, measured(task.spec, folder, source, shelf))


def check_answers(task: ValidationTask, settings: NodeSettings) -> None:
    """Raises TrainingError (empty_answers, answers_unmatched) where rewards can't mean what they should."""
    if not isinstance(task.spec.data, JsonlSource) or task.dataset is None:
        return  # arithmetic's answers are whole numbers
    with tempfile.TemporaryDirectory(prefix="powermean-validate-") as scratch:
        source = open_data(task, settings, Path(scratch))
        shelf = Shelf(settings.data_dir, task.dataset.sha256)
        reward = task.spec.reward
        check_verdicts(
            task.spec, shelf.answers(task.spec.data, reward, lambda: judge(source.to_check(), reward))
        )


def check_verdicts(spec: JobSpec, answers: Answers) -> None:
    """See check_answers."""
    assert isinstance(spec.data, JsonlSource)
    field = f"field {spec.data.answer_field!r}"
    if empty := lines(answers.blank):
        raise TrainingError(
            "empty_answers",
            f"{field} is blank in {named(empty)}: a completion that says nothing would be right",
            path="data.answer_field",
            remedy="remove those rows, or name the field that has the answers",
        )
    wrong, rows = lines(answers.unmatched), len(answers.unmatched)
    if wrong and len(wrong) >= REFUSED_SHARE * rows:
        how = f"extract: {spec.reward.extract}" if spec.reward.kind == "exact_match" else spec.reward.kind
        raise TrainingError(
            "answers_unmatched",
            f"no completion can match the answer of {named(wrong)}, {len(wrong) / rows:.0%} of "
            f"the rows: graded against itself by {how} it gets 0",
            path="data.answer_field",
            remedy="let the field have the final answer alone, as the grader extracts it (of GSM8K, what "
            "follows ####), or choose another reward",
        )


def fetch_dataset(dataset: ArtefactRef | None, settings: NodeSettings, scratch: Path) -> Path | None:
    """A local copy of the uploaded dataset.

    Raises TrainingError (dataset_missing), or a retryable ArtefactError.
    """
    if dataset is None:
        return None
    try:
        return ArtefactStore(settings.artefacts_url, existing=True).local_copy(
            dataset, scratch / "dataset.jsonl"
        )
    except ArtefactError as error:
        if error.retryable:  # no room for it here, or the store is away: the dataset is sound
            raise
        raise TrainingError(
            "dataset_missing", str(error), path="data.dataset", remedy="upload the dataset again"
        ) from error


def measured(spec: JobSpec, folder: Path, source: PromptSource, shelf: Shelf | None) -> Checked:
    """Every prompt of a dataset, kept on the `shelf`, or those that stand for a generator's.

    Raises TrainingError (unknown_model, no_chat_template, chat_template_failed).
    """
    encode = prompt_encoder(folder, chat=isinstance(spec.data, JsonlSource) and spec.data.chat)
    if shelf is not None:
        prompts = shelf.prompts(spec.data, folder, lambda: measure(source.to_check(), encode))
        return Checked(prompts, lambda row: f"line {row + 1}")
    problems = list(source.to_check())
    return Checked(measure(problems, encode), lambda row: problems[row].id)


def prompt_encoder(folder: Path, *, chat: bool) -> PromptEncoder:
    """As the run encodes prompts. Raises TrainingError (unknown_model)."""
    if not chat and (plain := of_file(folder)) is not None:
        return plain
    tokenizing = importlib.import_module("trainer.learner.tokenizing")  # imports transformers: seconds
    found: PromptEncoder = tokenizing.prompt_encoder(tokenizing.load_tokenizer(folder))
    return found


def check_lengths(spec: JobSpec, folder: Path, checked: Checked) -> int:
    """Tokens of the longest prompt with its completion.

    Raises TrainingError (prompt_too_long, prompt_empty, unknown_tokens) with the problem.
    """
    check_vocabulary(spec, folder, checked.prompts)
    if (most := longest_sequence(spec, folder)) is not None:
        check_room(spec, most, checked)
    if not checked.prompts.tokens.all():
        empty = lines(checked.prompts.tokens == 0)
        raise TrainingError(
            "prompt_empty",
            f"the prompt of {checked.name(empty[0] - 1)} has no tokens"
            + (f", and {len(empty) - 1:,} others have none" if len(empty) > 1 else ""),
            path="data.prompt",
            remedy="a prompt needs at least one token",
        )
    return checked.longest + spec.rollout.max_new_tokens


def check_room(spec: JobSpec, most: "Longest", checked: Checked) -> None:
    """Raises TrainingError (prompt_too_long) where a prompt and its completion exceed the engine's limit."""
    new, tokens = spec.rollout.max_new_tokens, checked.prompts.tokens
    room = most.tokens - new
    if room < 1:
        raise TrainingError(
            "prompt_too_long",
            f"max_new_tokens ({new}) leaves no room in {most.whose} {most.tokens} tokens",
            path="rollout.max_new_tokens",
            remedy=f"at most {most.tokens - checked.longest} for the longest prompt ({checked.longest} "
            f"tokens){most.way_out}",
        )
    if checked.longest <= room:
        return
    others = int((tokens > room).sum()) - 1
    raise TrainingError(
        "prompt_too_long",
        f"the longest prompt ({checked.name(int(tokens.argmax()))}) has {checked.longest} tokens; with "
        f"max_new_tokens {new} that exceeds {most.whose} {most.tokens}"
        + (
            f"; so do {others:,} others (e.g. {checked.name(int(np.flatnonzero(tokens > room)[0]))})"
            if others
            else ""
        ),
        path="data.prompt",
        remedy=f"shorten it to {room} tokens or lower rollout.max_new_tokens{most.way_out}",
    )


def check_vocabulary(spec: JobSpec, folder: Path, prompts: Prompts) -> None:
    """Raises TrainingError (unknown_tokens) where the tokenizer has tokens that the model lacks."""
    size = text_config(folder).get("vocab_size")
    if isinstance(size, int) and prompts.highest_id >= size:
        raise TrainingError(
            "unknown_tokens",
            f"the tokenizer makes token {prompts.highest_id} of a prompt, and the model's vocabulary ends at "
            f"{size - 1}",
            path="data.chat" if isinstance(spec.data, JsonlSource) and spec.data.chat else "model",
            remedy="use the tokenizer that the model was trained with, or add rows to its embeddings",
        )


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
