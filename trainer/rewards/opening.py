"""From a job's reward spec to its grader."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from powermean.contracts.rewards import MathVerify, RewardSpec
from trainer.rewards.exact_match import ExactMatchGrader
from trainer.rewards.grading import Grader
from trainer.rewards.isolation import IsolatedGrader

# A regular expression that takes longer than this on one completion is taken to run for ever.
PATTERN_TIMEOUT_S = 2.0


@contextmanager
def open_grader(spec: RewardSpec) -> Iterator[Grader]:
    """The grader of a job; its process, where it has one, ends with the block.

    What may run for ever (a user's regular expression, symbolic mathematics) runs in a process of its own.
    Open it in a thread that lives as long as the program: that process is killed when its thread ends.
    Raises TrainingError when that process can't start.
    """
    if isinstance(spec, MathVerify):
        isolated = IsolatedGrader("trainer.rewards.math_verify", (), spec.timeout_s)
    elif spec.extract == "pattern":
        arguments = (json.dumps({"pattern": spec.pattern, "ignore_case": spec.ignore_case}),)
        isolated = IsolatedGrader("trainer.rewards.pattern", arguments, PATTERN_TIMEOUT_S)
    else:
        yield ExactMatchGrader(spec.extract, spec.ignore_case)
        return
    with isolated:
        yield isolated
