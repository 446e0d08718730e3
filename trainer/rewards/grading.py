"""What a grader is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Item = tuple[str, str]  # (completion, reference answer)


@dataclass(frozen=True)
class Grade:
    """A completion's reward in [0, 1]. With an `error` the grader failed on it, and the reward is 0."""

    reward: float
    error: str | None = None


class Grader(Protocol):
    """Grades completions. A failure on one leaves the others untouched. Called from two threads at once."""

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Grades in the items' order. Raises TrainingError only when no grading is possible at all."""
