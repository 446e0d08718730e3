"""Where rank 0 needs the other ranks outside of updates: each tells them, and they do their part.

An engine that wakes up needs room on every GPU. A checkpoint has files of every rank. Passes of a sharded
model, and what gathers its weights (a publish, the final model), are collectives.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from powermean.artefacts import ArtefactStore
from trainer.learner import checkpoint
from trainer.learner.checkpoint import Progress
from trainer.learner.final_model import take_part_in_saving
from trainer.learner.learner import Learner
from trainer.policy.policy import Policy, Scores
from trainer.policy.token_tree import TokenTree
from trainer.ranks.exchange import Command, Duty, Ranks
from trainer.ranks.gradients import is_sharded
from trainer.weights.files import take_part

_PASS, _GATHER, _ROOM, _CHECKPOINT, _SAVE = "pass", "gather", "make_room", "checkpoint", "save_model"


@dataclass(frozen=True)
class LedPolicy(Policy):
    """Rank 0's, where it scores and the other ranks don't know: each of its passes tells them."""

    tell: Callable[[], object] = lambda: None

    def score(self, tree: TokenTree, *, entropy: bool = False) -> Scores:
        """See Policy. Without gradients."""
        self.tell()
        with torch.no_grad():
            return super().score(tree, entropy=entropy)


def led(learner: Learner) -> Policy:
    """The policy, for rank 0 to score with outside of updates."""
    policy = learner.policy
    if not is_sharded(policy.model):
        return policy
    known = {field.name: getattr(policy, field.name) for field in fields(Policy)}
    return LedPolicy(**known, tell=lambda: _call_to_pass(learner.ranks))


def _call_to_pass(ranks: Ranks) -> None:
    ranks.tell(_PASS)
    ranks.place.passes += 1


def call_to_gather(learner: Learner, *, adapter_alone: bool) -> None:
    """Rank 0: tell the others that it gathers what an engine is served."""
    if is_sharded(learner.policy.model):
        learner.ranks.tell(_GATHER, adapter_alone=adapter_alone)


def make_room(learner: Learner) -> None:
    """Rank 0: have every rank free the GPU memory that it caches, for the engine that wakes up beside it."""
    learner.ranks.tell(_ROOM)
    torch.cuda.empty_cache()


def call_to_save(learner: Learner) -> None:
    """Rank 0: tell the others that it saves the final model."""
    if is_sharded(learner.policy.model):
        learner.ranks.tell(_SAVE)


def call_to_checkpoint(learner: Learner, owner: str, progress: Progress) -> None:
    """Rank 0: tell the others that it stores a checkpoint."""
    learner.ranks.tell(_CHECKPOINT, owner=owner, progress=asdict(progress))


def duties(learner: Learner, store: ArtefactStore, scratch: Path) -> Mapping[str, Duty]:
    """What another rank does at each of these calls."""
    policy = learner.policy

    def one_pass(_told: Command) -> None:
        with torch.no_grad():
            learner.keep_pace(policy, 1)

    def gather(told: Command) -> None:
        take_part(policy.model, policy.dtype, adapter_alone=told.facts["adapter_alone"])

    def store_part(told: Command) -> None:
        checkpoint.store(
            store,
            told.facts["owner"],
            scratch,
            policy.model,
            learner.optimizer,
            Progress(**told.facts["progress"]),
            learner.master_weights,
            learner.ranks,
        )

    return {
        _PASS: one_pass,
        _GATHER: gather,
        _ROOM: lambda _told: torch.cuda.empty_cache(),
        _CHECKPOINT: store_part,
        _SAVE: lambda _told: take_part_in_saving(policy),
    }
