"""The transformers engine on CUDA: CUDA graphs, static memory, and the laws that hold on a CPU.

`pytest -m gpu`. benchmarks/gpu_engine.py asks the same of a model of real size, and how fast it is.
"""

from pathlib import Path
from threading import Event

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import Completion, GenerateRequest, Sampling
from rollout.engine import Fence
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource
from tests.support.tiny_engines import JOB, save_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]

PROMPTS = ((4, 5, 6), (4, 5, 6, 8, 9, 10, 11), (7,), (4, 5))
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def _engine(folder: Path, dtype: torch.dtype) -> TransformersEngine:
    return load_engine(
        folder,
        device="cuda",
        dtype=dtype,
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(None),
        max_model_len=None,
        max_batch_tokens=16384,
    )


def _sample(engine: TransformersEngine, new: int = 40, **sampling: object) -> list[Completion]:
    request = GenerateRequest(
        prompts=PROMPTS,
        n=16,
        sampling=Sampling.model_validate({"max_new_tokens": new, "seed": 0, **sampling}),
    )
    return [one for group in engine.generate(request, Event()).completions for one in group]


@pytest.mark.parametrize("dtype", NATS)
def test_log_probs_are_those_of_a_plain_pass(folder: Path, dtype: torch.dtype) -> None:
    found = _sample(_engine(folder, dtype))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to("cuda")
    prompts = [prompt for prompt in PROMPTS for _ in range(16)]
    for prompt, one in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *one.token_ids]], device="cuda")
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        assert one.logprobs == pytest.approx(expected.tolist(), abs=NATS[dtype])


@pytest.mark.parametrize("dtype", NATS)
def test_equal_seeds_give_equal_bits(
    folder: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """With graphs captured anew, with those of an earlier request, and after other requests."""
    engine = _engine(folder, dtype)
    first = _sample(engine)
    _sample(engine, new=7, seed=1, temperature=0.5)
    assert _sample(engine) == first
    assert _sample(_engine(folder, dtype)) == first
    assert _sample(engine, seed=1) != first
    assert not caplog.records  # it says so if there are no graphs, or if it gave up its static memory


def test_stops_cut_completions_and_rows_leave(folder: Path) -> None:
    engine = _engine(folder, torch.float32)
    whole, cut = _sample(engine), _sample(engine, stop=("4", "=1"))
    for long, short in zip(whole, cut, strict=True):
        size = len(short.token_ids)
        assert long.token_ids[: size - 1] == short.token_ids[: size - 1]
        assert short.logprobs == pytest.approx(long.logprobs[:size], abs=1e-3)
    assert sum(len(one.token_ids) for one in cut) < sum(len(one.token_ids) for one in whole)
