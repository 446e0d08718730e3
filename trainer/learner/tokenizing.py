"""Text to token ids and back, as everywhere in the trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trainer.data import Problem
from trainer.failures import TrainingError

Tokenizer = Any  # transformers' tokenizer classes are untyped


def load_tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer. Raises TrainingError (unknown_model) when it can't be loaded."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise TrainingError(
            "unknown_model",
            f"the tokenizer in {folder} can't be loaded: {error}",
            path="model",
            remedy="the folder needs tokenizer.json and tokenizer_config.json, without code of its own",
        ) from error


def encode_prompts(tokenizer: Tokenizer, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
    """Token ids of each prompt; a chat problem is one user message in the model's chat template."""
    return [tuple(_encode(tokenizer, problem)) for problem in problems]


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The completion's text, without special tokens such as the end of text."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def pad_token_id(tokenizer: Tokenizer) -> int:
    """An id to fill padding with; masks are never derived from it, so any will do."""
    return int(tokenizer.pad_token_id or 0)


def _encode(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    if not problem.chat:
        return list(tokenizer(problem.prompt).input_ids)
    messages = [{"role": "user", "content": problem.prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)
