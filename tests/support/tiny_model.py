"""A from-scratch character-level Llama that adds single digits badly, in seconds: something real to train.

Supervised warm-up on `a+b=` with half the answers wrong leaves an accuracy near 1/3 at temperature 1, which
reinforcement learning can raise.
"""

import fcntl
import os
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_spec import PROMPT as PROMPT
from tests.support.tiny_spec import tiny_spec as tiny_spec

PAD, END, NEWLINE = "<pad>", "<end>", "\n"
VOCABULARY = [PAD, END, NEWLINE, " ", "+", "-", "*", "=", *"0123456789", "?"]


def char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; what is not in the vocabulary becomes `?`."""
    plain = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=PAD,
        eos_token=END,
        unk_token="?",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def tiny_config(**changes: object) -> LlamaConfig:
    settings: dict[str, object] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.12,  # 0.02 learns nothing at this size
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaConfig(**(settings | changes))


def shared_model_root(base: Path) -> Path:
    """A model root that holds the folder `tiny`; `base` is pytest's, and all processes of a run share it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root = base / "tiny-models"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "tiny").exists():
            build_tiny_model(root / "part").rename(root / "tiny")
    return root


def build_tiny_model(folder: Path, updates: int = 150, seed: int = 0, **changes: object) -> Path:
    """Train it (about ten CPU seconds) and save it as a Hugging Face folder. `changes` go to its config."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    tokenizer = char_tokenizer()
    model = LlamaForCausalLM(tiny_config(**changes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(updates):
        ids, mask = _lesson(tokenizer, chance, 128)
        logits = model(input_ids=ids[:, :-1]).logits
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        ((losses * mask[:, 1:].flatten()).sum() / mask[:, 1:].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _lesson(
    tokenizer: PreTrainedTokenizerFast, chance: random.Random, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the mask of the answers, half of them wrong; an answer ends with a newline."""
    rows = []
    for _ in range(size):
        a, b = chance.randint(0, 9), chance.randint(0, 9)
        answer = a + b if chance.random() < 0.5 else chance.randint(0, 18)
        prompt = tokenizer(PROMPT.format(a=a, op="+", b=b)).input_ids
        rows.append((prompt, tokenizer(f"{answer}\n").input_ids))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(size, longest, dtype=torch.int64)
    mask = torch.zeros(size, longest)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask[i, len(prompt) : len(prompt) + len(answer)] = 1
    return ids, mask
