"""The interface of prompt sources, and the split between training and evaluation."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from powermean.contracts.jsonl import Span
from trainer.failures import TrainingError

_DIGEST_RANGE = 2**64


@dataclass(frozen=True)
class Problem:
    """One problem: its text and the reference answer. A chat problem's prompt is one user message.

    fields: where in the prompt a row's values are; control_tokens: what they spell out may be control tokens.
    """

    id: str
    prompt: str
    answer: str
    chat: bool = False
    fields: tuple[Span, ...] = ()
    control_tokens: bool = False


class PromptSource(Protocol):
    """Problems by step. There is no cursor to save: the step is the cursor."""

    def batch(self, step: int, count: int, seed: int, round_number: int = 0) -> list[Problem]:
        """Training problems of a step (from 1 on): a pure function of its arguments and the source.

        Round 0 is the step's batch; each later round has `count` other problems for the same step. No problem
        occurs twice in a round unless there are fewer than `count`, or in two rounds while others are left.
        """

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` evaluation problems, or all there are, in a fixed order.

        None of them is ever in a training batch.
        """

    def to_check(self) -> Iterator[Problem]:
        """Problems that stand for all: a dataset's rows, in order; some of a generator's, and the widest."""


def digest(text: str) -> int:
    """A number in [0, 2**64) that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def is_held_out(number: int, share: float) -> bool:
    """Whether the problem with this digest belongs to the `share` kept for evaluation."""
    return number < share * _DIGEST_RANGE


def generator(*parts: object) -> random.Random:
    """A generator that depends only on the parts."""
    return random.Random(":".join(map(str, parts)))


def too_few_problems(purpose: str, remedy: str) -> TrainingError:
    """The error of a source without problems for `purpose`."""
    return TrainingError(
        "too_few_problems",
        f"the data contains no problem {purpose} after the split by data.held_out",
        path="data",
        remedy=remedy,
    )
