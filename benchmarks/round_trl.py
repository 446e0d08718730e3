"""TRL's side of round.py: its GRPOTrainer on the same work."""

import os
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from gpu_bench import rewards, rollouts
from round_processes import Turn, asked
from round_work import UPDATE_GROUPS, Work, worked_on
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from transformers.utils import logging
from trl_peer import train, train_on

from powermean.contracts.job import JobSpec
from trainer.data.source import open_source
from trainer.learner.tokenizing import load_tokenizer
from trainer.rewards.isolation import open_grader
from trainer.run import use_threads

ROUNDS = 1000  # more than anyone waits for


def rounds(pipe: Connection, work: Work) -> None:
    """GRPOTrainer on the same problems, with `generate`: an update has one micro-batch, as in ours."""
    spec, tokenizer = work.spec, load_tokenizer(work.folder)
    use_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    training, size = spec.training, spec.rollout.group_size
    source = open_source(spec.data, None)
    problems = [
        {"prompt": one.prompt, "answer": one.answer}
        for step in range(1, ROUNDS + 1)
        for one in source.batch(step, training.prompts_per_step, spec.seed)
    ]
    of = trained(work.folder)
    of.generation_config.eos_token_id = ending(tokenizer, spec.rollout.stop)
    seen: dict[str, float] = {}
    with open_grader(spec.reward) as grader:

        def reward(
            prompts: list[str],
            completions: list[str],
            answer: list[str],
            completion_ids: list[list[int]],
            **_more: Any,
        ) -> list[float]:
            seen.update(worked_on(prompts, completion_ids))
            grades = grader.grade(list(zip(completions, answer, strict=True)))
            return [grade.reward for grade in grades]

        train(
            of,
            tokenizer,
            problems,
            reward,
            Turns(pipe, training.minibatches * training.epochs, lambda: dict(seen)),
            per_device_train_batch_size=training.prompts_per_step * size // training.minibatches,
            gradient_accumulation_steps=1,
            steps_per_generation=training.minibatches,
            num_iterations=training.epochs,
            num_generations=size,
            max_completion_length=spec.rollout.max_new_tokens,
            max_steps=ROUNDS * training.minibatches * training.epochs,
            **of_optimizer(spec),
        )


def updates(pipe: Connection, work: Work, prompt: int, completion: int) -> None:
    """GRPOTrainer's updates on the same, with as many completions in each micro-batch."""
    use_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    vocabulary = AutoConfig.from_pretrained(work.folder).vocab_size
    train_on(
        trained(work.folder),
        rollouts(vocabulary, prompt, completion, groups=UPDATE_GROUPS),
        rewards(UPDATE_GROUPS).tolist(),
        1,
        Turns(pipe, 1, dict),
        max_steps=ROUNDS,
        **of_optimizer(work.spec),
    )


class Turns(TrainerCallback):
    """The same for a trainer that calls us: a turn is some optimiser steps and what comes before them."""

    def __init__(self, pipe: Connection, updates: int, facts: Callable[[], dict[str, float]]) -> None:
        self._pipe, self._updates, self._facts = pipe, updates, facts

    def on_step_end(self, args: object, state: Any, control: Any, **_more: object) -> None:
        if state.global_step % self._updates:
            return
        if state.global_step == self._updates:
            self._pipe.send((os.getpid(),))
        else:
            seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
            self._pipe.send(Turn(seconds, cpu, self._facts()))
        control.should_training_stop = not asked(self._pipe)
        self._began, self._cpu = time.perf_counter(), time.process_time()


def trained(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def ending(tokenizer: Any, stop: Iterable[str]) -> list[int]:
    """Tokens that `generate` ends at: the tokenizer's own, and all with a stop string in them."""
    texts = ((one, tokenizer.decode([one])) for one in range(len(tokenizer)))
    ends = {one for one, text in texts if any(each in text for each in stop)}
    return sorted(ends | {tokenizer.eos_token_id})


def of_optimizer(spec: JobSpec) -> dict[str, Any]:
    """Our optimiser's settings by TRL's names, and what makes it train in float32 on a CPU."""
    own = spec.optimizer
    return {
        "learning_rate": own.learning_rate,
        "adam_beta1": own.betas[0],
        "adam_beta2": own.betas[1],
        "adam_epsilon": own.eps,
        "weight_decay": own.weight_decay,
        "max_grad_norm": own.max_grad_norm,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
