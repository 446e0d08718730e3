"""benchmarks/gpu_engine.py runs in toy sizes on a CPU, so that it can't rot while no GPU is to be had."""

from collections.abc import Iterator

import gpu_engine
import pytest
import torch
from gpu_engine import PARTS, compared, run

from powermean.contracts.rollout import Completion


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Its products are too small to be shared among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)  # as in a process of its own
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_part_runs_and_finds_what_a_cpu_promises() -> None:
    found = run(tiny=True)
    assert list(found) == ["machine", *PARTS]
    assert found["seeds"] == {
        "eager, equal prompts": [True],
        "eager, unequal prompts": [True],
        "another seed gives others": True,
    }
    assert all(found["causes"].values())
    assert found["log_probs"]["float32"]["ours"]["worst"] < 1e-4
    assert found["speed"]["eager"]["tok/s"] > 0
    assert found["speed"]["generate"]["tok/s"] > 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_parts_are_left_out_when_the_time_is_spent() -> None:
    found = run(tiny=True, seconds=3, parts=("silence", "speed"))
    assert found["silence"] == {"steps without a wait": True}
    assert list(found["speed"]) == ["left out"]


def test_a_part_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_bench: object) -> dict[str, object]:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(gpu_engine.PARTS, "seeds", (fail, 0))
    found = run(tiny=True, parts=("seeds", "silence"))
    assert found["seeds"] == {"error": "RuntimeError: no kernel"}
    assert found["silence"] == {"steps without a wait": True}


def test_what_differs_is_placed() -> None:
    def completion(*tokens: int, off: float = 0.0) -> Completion:
        log_probs = tuple(-1.0 - off * (place == 2) for place in range(len(tokens)))
        return Completion(token_ids=tokens, logprobs=log_probs, finish_reason="length", weight_versions=())

    one = [completion(1, 2, 3), completion(4, 5, 6)]
    assert compared(one, list(one)) is True
    assert compared(one, [one[0], completion(4, 5, 6, off=0.1)]) == "1 of 2 rows differ, the first at token 2"
    assert (
        compared(one, [completion(1, 2), completion(7, 5, 6)]) == "2 of 2 rows differ, the first at token 0"
    )
