"""Prompt sources: where problems come from and which are kept for evaluation."""

from trainer.data.problem import Problem, PromptSource
from trainer.data.source import open_source

__all__ = ["Problem", "PromptSource", "open_source"]
