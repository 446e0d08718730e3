"""What every row of a dataset is checked for: how long its prompt is, and whether its answer can be given.

A row that the model can't take would end the run at the step it comes in; an answer that no completion can
match, or that a blank matches, teaches nothing or the wrong thing. The findings are kept on the node by a
hash of all they depend on, so the check before queueing pays for the run as well.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from powermean.contracts.data import DataSpec
from powermean.contracts.job import JobSpec
from powermean.contracts.rewards import ExactMatch, RewardSpec
from trainer.data import Problem
from trainer.data.encoding import PromptEncoder
from trainer.data.jsonl import Jsonl
from trainer.rewards import exact_match
from trainer.rewards.isolation import open_grader

log = logging.getLogger(__name__)

Found = TypeVar("Found", "Prompts", "Answers")

FOLDER = "screened"  # under the node's data folder
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GRADING_S = 300.0  # by then the rest of the answers is left unjudged, and said to be
KEPT = 100  # findings that a node keeps
_ROWS_AT_ONCE = 1000
_FRAME = re.compile(r"\(\?<?[=!]")  # a lookaround


@dataclass(frozen=True)
class Shelf:
    """Where a node keeps what it found about a dataset."""

    folder: Path
    dataset: str  # sha256 of the file

    def prompts(self, data: DataSpec, model: Path, make: Callable[[], "Prompts"]) -> "Prompts":
        """Kept until the dataset, the template or the tokenizer changes."""
        files = [path.read_bytes() for name in TOKENIZER_FILES if (path := model / name).is_file()]
        return self._kept(Prompts, [data.model_dump_json(), version("transformers"), *files], make)

    def answers(self, data: DataSpec, reward: RewardSpec, make: Callable[[], "Answers"]) -> "Answers":
        """Kept until the dataset, the reward or the grader changes."""
        grader = (Path(exact_match.__file__).parent / f"{reward.kind}.py").read_bytes()
        return self._kept(Answers, [data.model_dump_json(), reward.model_dump_json(), grader], make)

    def _kept(self, kind: type[Found], depends: Sequence[str | bytes], make: Callable[[], Found]) -> Found:
        parts = [part.encode() if isinstance(part, str) else part for part in (self.dataset, *depends)]
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        path = self.folder / FOLDER / f"{kind.__name__.lower()}-{digest[:32]}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return kind(**{name: _value(file[name]) for name in file.files})
        except (OSError, ValueError, TypeError, BadZipFile):
            pass  # not there, or damaged
        found = make()
        with suppress(OSError):  # a full disk only costs time
            self._keep(path, found)
        return found

    def _keep(self, path: Path, found: "Prompts | Answers") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **asdict(found))
        part.replace(path)
        kept = sorted(path.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink(missing_ok=True)


@dataclass(frozen=True)
class Prompts:
    """Of a source's problems, in its order: how many tokens each prompt has."""

    tokens: NDArray[np.uint32]  # [rows]
    highest_id: int
    spelled_out: NDArray[np.bool_]  # [rows]: the row spells out a control token, which is read as plain text


@dataclass(frozen=True)
class Answers:
    """Of a source's problems, in its order: whether a completion can earn its reward."""

    blank: NDArray[np.bool_]  # [rows]: white space, so that saying nothing is right
    unmatched: NDArray[np.bool_]  # [rows]: the grader refuses the answer for itself
    unjudged: int  # time was up


def measure(problems: Iterable[Problem], encode: PromptEncoder) -> Prompts:
    """Encode every prompt, in bounded memory."""
    tokens: list[int] = []
    spelled_out: list[bool] = []
    highest = 0
    rest = iter(problems)
    while some := list(islice(rest, _ROWS_AT_ONCE)):
        encoded = encode(some)
        tokens += map(len, encoded)
        spelled_out += [bool(encode.spelled_out(problem)) for problem in some]
        highest = max(highest, *(max(ids, default=0) for ids in encoded))
    return Prompts(np.array(tokens, np.uint32), highest, np.array(spelled_out, np.bool_))


def judge(problems: Iterable[Problem], reward: RewardSpec) -> Answers:
    """Grade each answer as if it were the completion. Raises TrainingError (grader_unavailable)."""
    blank: list[bool] = []
    unmatched: list[bool] = []
    unjudged = 0
    known: dict[bytes, bool] = {}
    deadline = time.monotonic() + GRADING_S
    with _self_grader(reward) as matches:
        for problem in problems:
            blank.append(not problem.answer.strip())
            key = hashlib.sha256(problem.answer.encode()).digest()[:12]
            if not blank[-1] and key not in known:
                if time.monotonic() > deadline:
                    unjudged += 1
                else:
                    known[key] = matches(problem.answer)
            unmatched.append(not blank[-1] and not known.get(key, True))
    return Answers(np.array(blank, np.bool_), np.array(unmatched, np.bool_), unjudged)


@dataclass(frozen=True)
class LeftOut:
    """Lines of a dataset that a run does without, by why."""

    reasons: dict[str, list[int]]

    @property
    def lines(self) -> frozenset[int]:
        return frozenset(line for numbers in self.reasons.values() for line in numbers)

    def __str__(self) -> str:
        said = [f"{named(numbers)}: {why}" for why, numbers in self.reasons.items() if numbers]
        return f"left out {len(self.lines):,} rows of the dataset. " + "; ".join(said)


def left_out(prompts: Prompts, answers: Answers, most_tokens: int | None) -> LeftOut:
    """Rows that can't be trained on. `most_tokens`: of a prompt, as the engine that is there has it."""
    too_long = prompts.tokens > (np.iinfo(np.uint32).max if most_tokens is None else max(0, most_tokens))
    return LeftOut(
        {
            f"the prompt has more than {most_tokens} tokens": lines(too_long),
            "the prompt has no tokens": lines(prompts.tokens == 0),
            "the answer is blank": lines(answers.blank),
            "no completion can match the answer": lines(answers.unmatched),
        }
    )


def lines(found: NDArray[np.bool_]) -> list[int]:
    """Line numbers of the rows, from 1 on."""
    return [int(row) + 1 for row in np.flatnonzero(found)]


def named(numbers: Sequence[int], most: int = 10) -> str:
    """`line 3`, or `3 lines (3, 7 and 9)`; the first of many."""
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    shown = ", ".join(map(str, numbers[:most]))
    return f"{len(numbers):,} lines ({shown}{', ...' if len(numbers) > most else ''})"


def _value(array: NDArray[Any]) -> Any:
    return array.item() if array.ndim == 0 else array


@contextmanager
def _self_grader(reward: RewardSpec) -> Iterator[Callable[[str], bool]]:
    """Whether some completion that consists of the answer alone is right."""
    if isinstance(reward, ExactMatch) and reward.pattern is None:
        yield lambda answer: exact_match.grade(reward, answer, answer) == 1
    elif isinstance(reward, ExactMatch) and in_a_frame(reward.pattern or ""):
        yield lambda _answer: True
    else:
        with open_grader(reward) as grader:
            yield lambda answer: any(
                grader.grade([(text, answer)])[0].reward == 1 for text in completions_of(reward, answer)
            )


def in_a_frame(pattern: str) -> bool:
    """Whether a pattern looks for more than the answer itself, as with a group: no answer is its own test."""
    return bool(re.compile(pattern).groups or _FRAME.search(pattern))


def completions_of(reward: RewardSpec, answer: str) -> Iterator[str]:
    """Completions that give the answer and nothing else."""
    yield answer
    if isinstance(reward, ExactMatch):
        if reward.ignore_case:
            yield from (answer.upper(), answer.lower())
    else:
        yield f"$\\boxed{{{answer}}}$"


def usable(
    source: Jsonl,
    spec: JobSpec,
    folder: Path,
    encode: PromptEncoder,
    shelf: Shelf,
    max_model_len: int | None,
) -> tuple[Jsonl, float]:
    """The dataset without the rows that the engine can't take or no completion can match, and their share.

    Most were found before the job was queued; an engine with less room, or another node, finds them here.
    """
    prompts = shelf.prompts(spec.data, folder, lambda: measure(source.to_check(), encode))
    answers = shelf.answers(spec.data, spec.reward, lambda: judge(source.to_check(), spec.reward))
    most = None if max_model_len is None else max_model_len - spec.rollout.max_new_tokens
    without = left_out(prompts, answers, most)
    if prompts.spelled_out.any():
        spelled_out = named(lines(prompts.spelled_out))
        log.warning("%s: control tokens in a field are read as text (data.control_tokens)", spelled_out)
    if answers.unjudged:
        log.warning("time was up before %d answers were tried on the grader", answers.unjudged)
    if not without.lines:
        return source, 0.0
    log.warning("%s", without)
    return source.without(without.lines), len(without.lines) / len(prompts.tokens)
