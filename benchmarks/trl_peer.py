"""TRL's GRPOTrainer, whole, as the peer of benchmarks: it trains by its own loop, and callbacks look on."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trainer.rollouts.batching import Rollouts

SETTINGS: Mapping[str, Any] = {
    "lr_scheduler_type": "constant",
    "temperature": 1.0,
    "beta": 0.0,
    "loss_type": "grpo",
    "logging_steps": 10_000,
    "report_to": [],
    "save_strategy": "no",
    "seed": 0,
    "disable_tqdm": True,
    "shuffle_dataset": False,
}


def train(
    of: torch.nn.Module,
    tokenizer: Any,
    problems: Sequence[Mapping[str, str]],
    reward: Callable[..., list[float]],
    callback: TrainerCallback,
    rollout: Callable[..., dict[str, object]] | None = None,
    **settings: Any,
) -> None:
    """Train on the problems, in their order, until `max_steps` or until the callback stops it.

    settings: more of GRPOConfig. rollout: gives the completions, which TRL would sample otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=of,
            reward_funcs=reward,
            args=GRPOConfig(output_dir=folder, **{**SETTINGS, **settings}),
            rollout_func=rollout,
            train_dataset=Dataset.from_list([dict(one) for one in problems]),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()


def train_on(
    of: torch.nn.Module,
    given: Rollouts,
    graded: Sequence[float],
    groups: int,
    callback: TrainerCallback,
    **settings: Any,
) -> None:
    """Updates on the same rollouts over and over, `groups` groups in a micro-batch."""
    count, size = len(given.prompts), given.group_size

    def rollout(prompts: list[object], _trainer: object) -> dict[str, object]:
        assert len(prompts) == count * size
        rows = given.trajectories(range(count * size))
        return {
            "prompt_ids": [list(p) for p in rows.prompts],
            "completion_ids": rows.completions,
            "logprobs": None,
        }

    train(
        of,
        words(of.config.vocab_size),
        [{"prompt": f"t{i + 3}"} for i in range(count)],
        lambda completions, **_kw: list(graded),
        callback,
        rollout,
        per_device_train_batch_size=size * groups,
        gradient_accumulation_steps=count // groups,
        num_generations=size,
        num_iterations=1000,
        max_completion_length=given.tokens.shape[1],
        **settings,
    )


def words(vocabulary: int) -> Any:
    """A tokenizer of so many made-up words."""
    plain = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t2"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="t0", eos_token="t1", unk_token="t2")
