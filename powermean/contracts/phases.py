"""What an attempt is doing, in words for people that the job's page can also put in order.

The supervisor and the trainer write these phases; `read_step` is the way back of `in_step`.
"""

import re
from typing import NamedTuple

PREPARING_MODEL = "preparing the model"
STARTING_ENGINE = "starting the engine and the trainer"
STARTING_TRAINER = "starting the trainer"
LOADING_MODEL = "loading the model"
WAITING_FOR_ENGINE = "waiting for the rollout engine"
SAVING_MODEL = "saving the model"
SENDING_RECORDS = "sending the last records"
AFTER_LAST_STEP = (SAVING_MODEL, SENDING_RECORDS)

SAMPLING = "sampling"
SCORING = "scoring"
UPDATING = "updating"
PUBLISHING = "publishing weights"
EVALUATING = "evaluating"
CHECKPOINTING = "saving a checkpoint"
# What a training step does, in order; the last two not in every step.
ACTIVITIES = (SAMPLING, SCORING, UPDATING, PUBLISHING, EVALUATING, CHECKPOINTING)

_STEP = re.compile(r"step (\d+) of (\d+): ([a-z ]+)(?:, (.+))?")


class StepPhase(NamedTuple):
    """What is done in a step; `detail` says how far it is, "" if nothing more is known."""

    step: int
    steps: int
    activity: str
    detail: str = ""


def in_step(step: int, steps: int, activity: str, detail: str = "") -> str:
    """The phase within a step: `step 3 of 20: updating, 2 of 4`."""
    return f"step {step} of {steps}: {activity}" + (f", {detail}" if detail else "")


def is_sampling(phase: str) -> bool:
    """Whether completions that the engine makes are what the attempt waits for."""
    step = read_step(phase)
    return step is not None and step.activity == SAMPLING


def read_step(phase: str) -> StepPhase | None:
    """The phase within a step; None if the attempt is in none."""
    found = _STEP.fullmatch(phase)
    if found is None or found[3] not in ACTIVITIES:
        return None
    return StepPhase(int(found[1]), int(found[2]), found[3], found[4] or "")
