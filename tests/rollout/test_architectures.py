"""Models get the attention that they have: what the engine samples has the trainer's log-probs."""

from pathlib import Path

import pytest
import torch

from powermean.contracts.rollout import Sampling
from rollout.engine import EngineError
from tests.rollout.test_trainer_publishes import InProcess
from tests.support.small_models import small_model
from tests.support.tiny_engines import MakeEngine
from tests.support.tiny_model import char_tokenizer
from trainer.policy.loading import load_policy
from trainer.weights.engine_pool import EnginePool
from trainer.weights.probe import probe

PROMPTS = ((10, 4, 11, 7), (9, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alibi", "own attention", "gpt2", "window"])
def test_the_engine_serves_it(name: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    model = small_model(name)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(tmp_path, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)
    served = InProcess(make_engine(tmp_path))
    assert (
        probe(EnginePool([served]), policy, PROMPTS, Sampling(max_new_tokens=6, seed=0), pad_token_id=0)
        < 1e-3
    )


def test_a_model_without_keys_and_values_is_left_to_vllm(tmp_path: Path, make_engine: MakeEngine) -> None:
    small_model("recurrent").save_pretrained(tmp_path)
    char_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="MambaForCausalLM") as caught:
        make_engine(tmp_path)
    assert caught.value.code == "unsupported_model"
    assert caught.value.remedy == "Set rollout.engine to vllm."
