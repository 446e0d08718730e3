"""What both sides of round.py work on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollouts_models import Models, job

from powermean.contracts.job import JobSpec

UPDATE_GROUPS = 4  # of an update alone, as in the main job's


@dataclass(frozen=True)
class Work:
    """A model, and the job that trains it."""

    models: Models
    name: str

    @property
    def spec(self) -> JobSpec:
        """The main job, at its full learning rate from the first update on."""
        spec = job(self.name)
        return spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"warmup_updates": 0})})

    @property
    def folder(self) -> Path:
        return self.models.folder(self.name)


def worked_on(prompts: Iterable[Any], completions: Iterable[Iterable[int]]) -> dict[str, float]:
    """How many completion tokens a round had, and which share of its rows differ from all others."""
    rows = [(str(prompt), tuple(ids)) for prompt, ids in zip(prompts, completions, strict=True)]
    return {"tokens": float(sum(len(ids) for _, ids in rows)), "distinct": len(set(rows)) / len(rows)}
