"""Rank 0's learner and those of the other ranks, as one: what it does with a batch, they do too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.learner.learner import Learner
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.ranks.exchange import Command, Duty


@dataclass(frozen=True)
class Leading:
    """Calls the learners of all ranks. Alone it calls the one there is."""

    learner: Learner

    def begin(self, batch: TrainingBatch) -> None:
        """Give all ranks a step's batch, before anything is done with it."""
        if not self.learner.ranks.world.alone:
            facts, tensors = batch.message()
            self.learner.ranks.tell("begin", tensors, **facts)

    def score_start(self, batch: TrainingBatch, dealt: Sequence[Sequence[int]]) -> None:
        """See Learner."""
        self.learner.ranks.tell("score_start", dealt=[list(groups) for groups in dealt])
        self.learner.score_start(batch, dealt)

    def update(self, batch: TrainingBatch, groups: Sequence[int], number: int) -> UpdateReport:
        """See Learner."""
        self.learner.ranks.tell("update", groups=list(groups), number=number)
        return self.learner.update(batch, groups, number)


class Following:
    """What another rank does at each of these calls."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._batch: TrainingBatch | None = None

    @property
    def duties(self) -> Mapping[str, Duty]:
        return {"begin": self._begin, "score_start": self._score_start, "update": self._update}

    def _begin(self, told: Command) -> None:
        self._batch = TrainingBatch.of_message(told.facts, told.tensors, self._learner.policy.device)

    def _score_start(self, told: Command) -> None:
        self._learner.score_start(self._given(), told.facts["dealt"])

    def _update(self, told: Command) -> None:
        self._learner.update(self._given(), told.facts["groups"], told.facts["number"])

    def _given(self) -> TrainingBatch:
        assert self._batch is not None
        return self._batch
