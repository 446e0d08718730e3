"""Text to token ids and back, as everywhere in the trainer."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from trainer.data.encoding import PromptEncoder, of_backend, of_python
from trainer.failures import TrainingError

UNKNOWN = "\ufffd"
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


def prompt_encoder(tokenizer: Tokenizer) -> PromptEncoder:
    """How this tokenizer encodes prompts; a chat problem is one user message in the model's chat template."""

    def fill(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    fill_template = fill if tokenizer.chat_template else None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Backend):
        return of_backend(backend, fill_template)
    return of_python(tokenizer, fill_template)


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """What the tokens say, special ones included: if one vanished, its neighbours would join.

    An id without a token, as at the end of a padded vocabulary, is U+FFFD.
    """
    known = len(tokenizer)
    if all(token < known for token in token_ids):
        return _decoded(tokenizer, token_ids)
    parts = groupby(token_ids, lambda token: token < known)
    return "".join(
        _decoded(tokenizer, list(ids)) if is_known else UNKNOWN * len(list(ids)) for is_known, ids in parts
    )


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def pad_token_id(tokenizer: Tokenizer) -> int:
    """An id to fill padding with; masks are never derived from it, so any will do."""
    return int(tokenizer.pad_token_id or 0)
