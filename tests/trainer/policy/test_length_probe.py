"""A row's log-probs depend on the row alone, or the model is refused."""

from collections.abc import Mapping

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from tests.support.small_models import SMALL, small_model
from trainer.failures import TrainingError
from trainer.policy.length_probe import difference_beside, refuse_length_dependence
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 12,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}


def phi(rope: Mapping[str, object]) -> Policy:
    config = Phi3Config(**SMALL, original_max_position_embeddings=12, rope_parameters=dict(rope))
    torch.manual_seed(0)
    return make_policy(Phi3ForCausalLM(config), dtype=torch.float32, temperature=1.0)


def test_factors_that_switch_with_the_longest_row_are_found_at_that_length_alone() -> None:
    policy = phi(LONGROPE)
    refuse_length_dependence(policy, 13)  # of which the last token is never an input
    assert difference_beside(policy, 14) > 0.1
    with pytest.raises(TrainingError, match="beside a row of 20 tokens") as caught:
        refuse_length_dependence(policy, 20)
    assert caught.value.code == "length_dependent_model"


@pytest.mark.parametrize("name", ["tied", "window", "recurrent", "alibi", "own attention"])
def test_others_may_stand_beside_any_row(name: str) -> None:
    policy = make_policy(small_model(name), dtype=torch.float32, temperature=1.0)
    refuse_length_dependence(policy, 60)
    refuse_length_dependence(policy, 2)
