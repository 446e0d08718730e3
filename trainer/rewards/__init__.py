"""Graders: from completions to rewards in [0, 1]."""

from trainer.rewards.grading import Grade, Grader, Item
from trainer.rewards.opening import open_grader

__all__ = ["Grade", "Grader", "Item", "open_grader"]
