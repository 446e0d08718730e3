"""What a model can be asked for is found out by trying, and every model is sampled right in some way."""

from collections.abc import Callable
from threading import Event

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.transformers.attention import decoding_attention
from rollout.transformers.checks import agrees, is_plain
from rollout.transformers.decoding import Decoder, sample_batch
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import Slots
from rollout.transformers.stopping import Stopping
from rollout.transformers.tree_decoder import TreeDecoder
from tests.support.tiny_model import char_tokenizer

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
GROUPED = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 64}

# Kind of model: (config, whether its cache is plain).
KINDS: dict[str, tuple[dict[str, object], bool]] = {
    "Llama": (GROUPED, True),
    "Qwen2": (GROUPED, True),
    "Qwen3": ({**GROUPED, "head_dim": 16}, True),
    "Granite": ({**GROUPED, "logits_scaling": 3.0, "attention_multiplier": 0.2}, True),
    "GPTNeoX": ({**SIZE, "intermediate_size": 64}, True),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}, True),
    "Mixtral": ({**GROUPED, "num_local_experts": 4, "sliding_window": None}, True),
    "Mistral": ({**GROUPED, "sliding_window": 4}, False),
    "Gemma2": ({**GROUPED, "head_dim": 8, "sliding_window": 4}, False),
    "Falcon": ({**SIZE, "alibi": True}, False),
    "OPT": ({**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3}, True),
    "Lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, False),
}


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    special = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind][0], **special)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def _is_sampled_right(model: PreTrainedModel, decoder: Decoder, prompts: list[tuple[int, ...]]) -> None:
    draws = torch.rand(len(prompts), 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sample_batch(decoder, draws, Stopping(char_tokenizer(), frozenset(), ()), Event())
    for prompt, one in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *one.token_ids]])).logits[0].double()
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(
            1, torch.tensor(one.token_ids)[:, None]
        )
        assert one.log_probs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_are_sampled_right(kind: str) -> None:
    model = _model(kind)
    plain = is_plain(model)
    assert plain == KINDS[kind][1]
    assert model.config._attn_implementation == "sdpa"  # as it was: others may hold the model
    short, long = (5, 6, 7), (5, 6, 8, 9, 10, 11)
    if not plain:
        for prompt in (short, long):
            _is_sampled_right(model, TreeDecoder(model, [prompt] * 4, 1.0, plain=False), [prompt] * 4)
        return
    prompts, slots = [short, long] * 3, Slots(model, graphs=False)
    with decoding_attention(model, grouped=True):
        assert agrees(model, lambda some: SlotDecoder(model, slots, some, 1.0, 8))
        _is_sampled_right(model, SlotDecoder(model, slots, prompts, 1.0, 12), prompts)
        _is_sampled_right(model, TreeDecoder(model, prompts, 1.0, plain=True), prompts)


@pytest.mark.parametrize(
    "break_",
    [lambda output: output * 1.01, lambda output: output.roll(1, dims=0), lambda output: output * torch.nan],
)
def test_a_decoder_that_is_off_does_not_agree(break_: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What comes out of the first layer is changed wherever several rows pass together."""
    model = _model("Llama")

    def change(_module: object, _given: object, output: torch.Tensor) -> torch.Tensor:
        return break_(output) if len(output) > 1 else output

    assert agrees(model, lambda prompts: TreeDecoder(model, prompts, 1.0, plain=True))
    model.model.layers[0].register_forward_hook(change)
    assert not agrees(model, lambda prompts: TreeDecoder(model, prompts, 1.0, plain=True))
