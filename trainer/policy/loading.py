"""From a model's folder to a policy, and which way of scoring the model takes.

Which one holds is tried on the model itself, with its gradient, not guessed.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.failures import TrainingError, cuda_unavailable, is_broken_call, is_out_of_memory
from trainer.policy.flash import flash_serves
from trainer.policy.flex import never_fall_back
from trainer.policy.model_files import check_weights
from trainer.policy.policy import Policy
from trainer.policy.token_tree import TokenTree, sort_rows, token_tree
from trainer.policy.tree_attention import NAME, TreeUnsupportedError, attend_by_trees
from trainer.rollouts.batching import Trajectories

log = logging.getLogger(__name__)

# Largest log-prob difference between two ways that rounding explains.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.25}


Compile = Literal["on", "try", "off"]


def load_policy(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float,
    gradient_checkpointing: bool = False,
    compiled: Compile = "off",
) -> Policy:
    """The model in `folder`, dropout off. Raises TrainingError: unknown_model when it can't be loaded, and
    those of `check_weights` and `make_policy`.
    """
    model = load_model(folder)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to, which hides its signature
    return make_policy(
        model,
        dtype=dtype,
        temperature=temperature,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
    )


def load_model(folder: Path) -> PreTrainedModel:
    """The model in `folder`, float32, in the host's memory. Raises TrainingError, see `load_policy`."""
    check_weights(folder)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise TrainingError(
            "unknown_model",
            f"the model in {folder} can't be loaded: {error}",
            path="model",
            remedy="it must be a causal language model that transformers knows, with safetensors weights",
        ) from error
    return model


def empty_model(folder: Path) -> PreTrainedModel:
    """The same without its weights: layers and shapes, no memory."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return model


def make_policy(
    model: PreTrainedModel | PeftModel,
    *,
    dtype: torch.dtype,
    temperature: float,
    gradient_checkpointing: bool = False,
    compiled: Compile = "off",
) -> Policy:
    """A policy around a float32 model that is on its device already, in evaluation mode for good.

    That switches off dropout and router noise, whatever a model calls them; two passes show whether it did.
    Layers that can't be compiled stay as they were if that was only to be tried, and the log says so. Raises
    TrainingError: model_not_finite where log-probs are no numbers; random_model where two passes differ;
    unknown_model where no way of scoring gives what the model's own logits give, or its layers can't be
    computed again; compile_failed where they can't be compiled.
    """
    model.train(False)
    rows = Policy(model, temperature, dtype, next(model.parameters()).device, by_tree=False)
    expected = _by_logits(rows, _probe_rows(rows))
    if not expected.isfinite().all():
        raise TrainingError(
            "model_not_finite",
            "the model's log-probs are not finite numbers: its weights hold NaN or infinity, or overflow",
            path="model",
            remedy="download the model again, or choose a checkpoint from before it diverged",
        )
    if not torch.equal(expected, again := _by_logits(rows, _probe_rows(rows))):
        raise TrainingError(
            "random_model",
            "two passes over the same tokens differ by "
            f"{float((expected - again).abs().max()):.2g} nats in evaluation mode",
            path="model",
            remedy="switch off in the model's config.json what draws random numbers (dropout, router noise)",
        )
    if (why := _objection(rows, expected)) is not None:
        raise TrainingError(
            "unknown_model",
            f"the model's log-probs can't be had from its hidden states: {why}",
            path="model",
            remedy="choose a model whose logits are a linear layer's, scaled or soft-capped at most",
        )
    policy = _by_tree(rows, expected) or rows
    # Only now: what was tried before is not to be compiled.
    if compiled != "off":
        _compile(policy, expected, must=compiled == "on")
    if gradient_checkpointing:
        checkpoint_layers(model)
        if (why := _objection(policy, expected)) is not None:
            raise TrainingError(
                "unknown_model",
                f"layers that are computed again don't give what they gave before: {why}",
                path="training.gradient_checkpointing",
                remedy="set training.gradient_checkpointing to false, and lower training.micro_batch_tokens",
            )
    return policy


def _by_tree(rows: Policy, expected: Tensor) -> Policy | None:
    """The policy that scores trees, where the model can; else the log says why not."""
    model, why = rows.plain_model, None
    if not _attends_to_all(model):
        why = "not all of its layers attend to every token before"
    else:
        attention = model.config._attn_implementation
        attend_by_trees(model)
        flash = flash_serves(model.config.get_text_config(), rows.dtype, rows.device)
        trees = replace(rows, by_tree=True, flash=flash)
        if model.config._attn_implementation != NAME:
            why = "its attention can't be replaced"
        elif (why := _objection(trees, expected)) is None:
            return trees
        model.set_attn_implementation(attention)
    log.info("prompts and completions are padded, and what they share is computed again: %s", why)
    return None


def _compile(policy: Policy, expected: Tensor, *, must: bool) -> None:
    """Compile the layers, or leave them as they were."""
    layers = decoder_layers(policy.plain_model)
    why: str | None = "it has no layers that are known to be alike"
    if layers and policy.by_tree:
        compile_layers(layers)
        try:
            why = _objection(policy, expected)
        except RuntimeError as error:  # the compiler's own are
            if is_out_of_memory(error) or is_broken_call(error):
                raise
            if isinstance(policy.plain_model, FSDPModule):
                policy.plain_model.reset_iter_state()  # it may have failed within the backward pass
            why = str(error).strip().split("\n")[0]
    elif layers:
        why = "its rows are padded"
    if why is None:
        return
    for layer in layers:
        layer.__dict__.pop("forward", None)
    message = f"the model's layers are not compiled: {why}"
    if must:
        raise TrainingError(
            "compile_failed", message, path="training.compile", remedy="set training.compile to off"
        )
    log.warning("%s", message)


def compile_layers(layers: Sequence[nn.Module]) -> None:
    """Let torch.compile fuse what layers do between matrix products. They are alike: one is compiled."""
    never_fall_back()
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def checkpoint_layers(model: PreTrainedModel | PeftModel) -> None:
    """Keep the layers' inputs alone for the backward pass, which computes them again.

    Done here and not by transformers, which does it in training mode only: that would switch dropout on,
    under whatever name a model has it, and ratios compare two passes over the same function.
    """
    if not (layers := decoder_layers(model)):
        raise TrainingError(
            "unknown_model",
            f"{type(model).__name__} has no layers that can be computed again",
            path="training.gradient_checkpointing",
            remedy="set training.gradient_checkpointing to false, and lower training.micro_batch_tokens",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def decoder_layers(model: PreTrainedModel | PeftModel) -> list[GradientCheckpointingLayer]:
    """The model's layers, in order; none of a model in which transformers marks none."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def resolve_device(wanted: str, gpus: int, local_rank: int = 0) -> torch.device:
    """auto takes CUDA where GPUs are allocated, a rank that of its number on its node.

    Raises TrainingError (cuda_unavailable).
    """
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise cuda_unavailable()
    return torch.device("cuda", local_rank)


def resolve_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """auto is float32 on a CPU and bfloat16 on CUDA."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _attends_to_all(model: PreTrainedModel) -> bool:
    """Whether each layer attends to every token before, as far as the config tells.

    A trial would not find a window that is longer than the rows it is made with.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    sliding = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return not (kinds - {"full_attention"} if kinds else sliding)


def _probe_rows(policy: Policy) -> Trajectories:
    """Two unequal prompts; one completion twice, one that begins another, one of a single token."""
    vocabulary = int(policy.plain_model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    ids = (torch.arange(1, 13) * 7 % vocabulary).tolist()
    long, short = ids[:5], ids[5:7]
    completions = (ids[7:10], ids[7:10], ids[7:9], ids[10:11])
    return Trajectories((long,) * 4 + (short,) * 4, completions * 2)


@torch.no_grad()
def _by_logits(policy: Policy, given: Trajectories) -> Tensor:
    """Log-probs [B, T] in the tree's order from the model's own logits, a row at a time."""
    order = sort_rows(given)
    found = torch.zeros(len(order), max(map(len, given.completions)))
    for place, row in enumerate(order):
        prompt, completion = list(given.prompts[row]), list(given.completions[row])
        with policy.precision():
            ids = torch.tensor([prompt + completion], device=policy.device)
            logits = policy.plain_model(input_ids=ids, use_cache=False).logits
        scaled = logits[0, len(prompt) - 1 : -1].to(_work(policy)) / policy.temperature
        chosen = scaled.log_softmax(-1).gather(-1, torch.tensor(completion, device=policy.device)[:, None])
        found[place, : len(completion)] = chosen[:, 0].cpu()
    return found


def _objection(policy: Policy, expected: Tensor) -> str | None:
    """Why the policy's way of scoring does not do for its model; None if it does."""
    given = _probe_rows(policy)
    tree: TokenTree = token_tree(given, sort_rows(given))
    try:
        with torch.enable_grad():
            log_probs = policy.score(tree).log_probs
            log_probs.sum().backward()  # type: ignore[no-untyped-call]
    except (TreeUnsupportedError, TypeError, ValueError) as error:
        return str(error)
    # Found at the weights: those of a sharded model are put there by hooks.
    finite = [_is_finite(weight.grad) for weight in policy.model.parameters() if weight.grad is not None]
    policy.model.zero_grad(set_to_none=True)
    apart = float((log_probs.detach().cpu() - expected).abs().max())
    if not bool(expected.isfinite().all()):
        return "the model's own are not finite"
    if not apart <= AGREEMENT[policy.dtype]:
        return f"log-probs differ by {apart:.2g}"
    if not all(finite):
        return "its gradient is not finite"
    return None


def _is_finite(gradient: Tensor) -> bool:
    """The same on all ranks that hold rows of it. A collective then."""
    found = gradient.isfinite().all()
    return bool(found.full_tensor() if isinstance(found, DTensor) else found)


def _work(policy: Policy) -> torch.dtype:
    return torch.float64 if policy.dtype == torch.float64 else torch.float32
