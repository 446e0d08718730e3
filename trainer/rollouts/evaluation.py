"""Held-out reward: one sampled completion per held-out problem."""

from collections.abc import Collection, Sequence

from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import Sampling
from trainer.data import Problem
from trainer.rewards.grading import Grader
from trainer.rollouts.sampling import Decode, Engine, complete_prompts, graded_part, texts
from trainer.seeds import derive_seed


def evaluate(
    engine: Engine,
    grader: Grader,
    problems: Sequence[Problem],
    prompts: Sequence[tuple[int, ...]],
    decode: Decode,
    end_tokens: Collection[int],
    spec: JobSpec,
) -> float:
    """Mean reward. The seed is the same each time, so evaluations differ only by the weights."""
    temperature = spec.evaluation.temperature
    sampling = Sampling(
        temperature=spec.rollout.temperature if temperature is None else temperature,
        max_new_tokens=spec.rollout.max_new_tokens,
        stop=spec.rollout.stop,
        seed=derive_seed(spec.seed, "evaluation"),
    )
    rollouts = complete_prompts(engine, prompts, count=1, sampling=sampling, pad_token_id=0)
    answers = [problem.answer for problem in problems]
    graded = [graded_part(text, sampling.stop) for text in texts(rollouts, decode, end_tokens)]
    grades = grader.grade(list(zip(graded, answers, strict=True)))
    return sum(grade.reward for grade in grades) / len(grades)
