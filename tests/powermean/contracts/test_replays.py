"""What people type of an objective's fields, and what a replay says of them."""

import pytest

from powermean.contracts.algorithms import Grpo, Pmpo, PowerMean
from powermean.contracts.replays import OBJECTIVES, parse_settings
from tests.support.sample_replays import sample_replay


def test_values_are_json_or_else_text() -> None:
    found = parse_settings(["clip=0.2", "ess_target=absolute", "ess_clip_range=[0.1, 0.2]", "x=null"])
    assert found == {"clip": 0.2, "ess_target": "absolute", "ess_clip_range": [0.1, 0.2], "x": None}


@pytest.mark.parametrize("text", ["clip", "=1", "clip=", " = "])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not field=value, as in clip"):
        parse_settings([text])


@pytest.mark.parametrize("value", [r'"\ud800"', "NaN", "[1e999]", "[" * 100_000, "9" * 5000])
def test_a_value_that_could_not_be_sent_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="can't be taken"):
        parse_settings([f"clip={value}"])


def test_a_replay_says_what_it_changed() -> None:
    recorded = Pmpo(clip_low=0.1)
    assert sample_replay(recorded=recorded, algorithm=recorded).settings == ""
    assert sample_replay(recorded=recorded, algorithm=Pmpo()).settings == "clip_low=0.4"
    assert sample_replay(recorded=recorded, algorithm=Grpo(epsilon_low=0.1)).settings == "epsilon_low=0.1"
    assert sample_replay(recorded=recorded, algorithm=PowerMean(p=0.5)).settings == "p=0.5"
    changed = sample_replay(algorithm=Pmpo(clip_low=0.1, ess_clip_range=(0.1, 0.2)))
    assert changed.settings == "clip_low=0.1 ess_clip_range=[0.1,0.2]"
    assert parse_settings(changed.settings.split()) == changed.changes


def test_every_objective_has_its_name() -> None:
    assert OBJECTIVES["grpo"] is Grpo
