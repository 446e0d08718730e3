"""The policy: log-probs of completions under a Hugging Face causal language model.

Log-probs are those of softmax(logits / temperature), the distribution that completions are sampled from.
Weights and optimiser are float32; with bfloat16 the forward pass runs under autocast, so that small updates
are not rounded away.

No padding reaches the model: a batch is one flat row of tokens in which everything that completions share
is there once (token_tree.py). A model whose attention can't take that is given prompt and completion whole, a
row each, padded on the right.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from trainer.policy.flex import BLOCK
from trainer.policy.one_pass import one_pass
from trainer.policy.output_layer import OutputLayer, Questions
from trainer.policy.token_tree import (
    TokenTree,
    micro_batches,
    padded,
    row_batches,
    row_nodes,
)
from trainer.policy.tree_attention import tree_attention
from trainer.rollouts.batching import Trajectories


@dataclass(frozen=True)
class Scores:
    """Of each completion token of a tree's rows, in the tree's order; 0 on padding."""

    log_probs: Tensor  # [B, T] float32, nats
    entropy: Tensor | None  # [B, T] float32, nats


@dataclass(frozen=True)
class Policy:
    """A causal language model, with an adapter or without, and how its completions are scored."""

    model: PreTrainedModel | PeftModel
    temperature: float
    dtype: torch.dtype
    device: torch.device
    by_tree: bool  # False: the model takes rows alone
    flash: bool = False  # trees attend by FlashAttention

    def batches(self, given: Trajectories, most_tokens: int) -> Iterator[TokenTree]:
        """All rows that have a completion, in batches that give the model at most so many tokens at once."""
        return micro_batches(given, most_tokens) if self.by_tree else row_batches(given, most_tokens)

    def score(self, tree: TokenTree, *, entropy: bool = False) -> Scores:
        """Log-probs of the rows' completion tokens and, if asked for, entropy; with gradients, if enabled."""
        # Never a single block: a compiler takes a size of 1 for a constant.
        tree = (padded(tree, 2 * BLOCK) if self.device.type == "cuda" else tree).to(self.device)
        log_probs, entropies = one_pass(self.plain_model, lambda: self._answers(tree, entropy))
        return Scores(
            log_probs=tree.per_token(log_probs),
            entropy=None if entropies is None else tree.per_token(entropies[tree.question_head]),
        )

    @property
    def plain_model(self) -> PreTrainedModel:
        """The transformers model, its adapter's layers in place."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    def _answers(self, tree: TokenTree, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """See OutputLayer.answer."""
        with self.precision():
            hidden = self._of_tree(tree) if self.by_tree else self._of_rows(tree)
        questions = Questions(tree.question_head, tree.question_token, tree.questions_before)
        layer = OutputLayer.of(self.plain_model, self.temperature)
        return layer.answer(hidden, questions, self.dtype, entropy=entropy)

    def _of_tree(self, tree: TokenTree) -> Tensor:
        """Hidden states [R, D] of the nodes that something is asked of."""
        output = self._decoder(
            input_ids=tree.tokens[None],
            position_ids=tree.depth[None],
            attention_mask=_no_mask(tree.tokens.device),
            token_tree=tree_attention(tree, flash=self.flash),
        )
        hidden: Tensor = output.last_hidden_state[0, tree.heads]
        return hidden

    def _of_rows(self, tree: TokenTree) -> Tensor:
        nodes = row_nodes(tree)
        row_of = torch.empty(tree.size, dtype=torch.int64)
        for row, line in enumerate(nodes):
            row_of[line[line >= 0]] = row
        nodes, row_of = nodes.to(self.device), row_of.to(self.device)
        output = self._decoder(
            input_ids=tree.tokens[nodes.clamp(min=0)], attention_mask=(nodes >= 0).to(torch.int64)
        )
        hidden: Tensor = output.last_hidden_state[row_of[tree.heads], tree.depth[tree.heads]]
        return hidden

    def _decoder(self, **inputs: Any) -> Any:
        return self.plain_model.base_model(use_cache=False, **inputs)

    def precision(self) -> AbstractContextManager[object]:
        """Autocast, where float32 weights are worked with in bfloat16. FSDP2 gathers them rounded."""
        float32 = self.plain_model.dtype == torch.float32 and not isinstance(self.plain_model, FSDPModule)
        mixed = self.dtype == torch.bfloat16 and float32
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)


def _no_mask(device: torch.device) -> Tensor:
    """transformers makes no mask of its own where it is given one of four dimensions; nothing looks at it."""
    return torch.zeros(1, 1, 1, 1, device=device)
