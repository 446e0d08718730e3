"""Real vLLM with LoRA adapters of two jobs on one tiny model; one start for the file."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import (
    AdapterShape,
    Completion,
    GenerateRequest,
    PublishRequest,
    Sampling,
    WeightFile,
)
from rollout.engine import EngineError
from rollout.engines.vllm_adapter_engine import AdapterEngine, load_adapter_engine
from rollout.engines.vllm_server import Deadlines, VllmOptions
from rollout.weights import WeightSource
from tests.tiny_model import char_tokenizer, tiny_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROMPT = (9, 4, 10, 7)
REQUEST = GenerateRequest(prompts=(PROMPT, (12, 5, 8)), n=2, sampling=Sampling(max_new_tokens=8))
SHAPE = AdapterShape(rank=4, alpha=8.0, target_modules=("q_proj", "v_proj", "down_proj"))
TOLERANCE = 1e-3

Tensors = dict[str, torch.Tensor]


def _base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = tiny_config(num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3)
    return LlamaForCausalLM(config).eval()


def _adapter(seed: int) -> Tensors:
    """An adapter's weights under peft's names, large enough to change every log-prob."""
    chance = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, module in _base().named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in SHAPE.target_modules:
            shapes = {"A": (SHAPE.rank, module.in_features), "B": (module.out_features, SHAPE.rank)}
            for side, shape in shapes.items():
                found[f"base_model.model.{name}.lora_{side}.weight"] = 0.3 * torch.randn(
                    shape, generator=chance
                )
    return found


def _merged(adapter: Tensors) -> LlamaForCausalLM:
    """The base model with W + (alpha / rank) B A."""
    model = _base()
    for name, module in model.named_modules():
        stem = f"base_model.model.{name}.lora_"
        if f"{stem}A.weight" in adapter:
            change = adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"]
            module.weight.data += SHAPE.alpha / SHAPE.rank * change
    return model


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm-lora")


@pytest.fixture(scope="module")
def store(room: Path) -> ArtefactStore:
    return ArtefactStore((room / "artefacts").as_uri())


@pytest.fixture(scope="module")
def engine(room: Path, store: ArtefactStore) -> Iterator[AdapterEngine]:
    folder = room / "model"
    _base().save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    started = load_adapter_engine(
        VllmOptions(folder, "float32", max_num_seqs=16, max_lora_rank=8),
        slots=2,
        weights=WeightSource(store, room),
        deadlines=Deadlines(start=500, generate=200, sync_step=120),
    )
    yield started
    started.close()


@pytest.fixture
def announce(room: Path, store: ArtefactStore) -> Callable[..., PublishRequest]:
    def put(tensors: Tensors, job: str, version: int, attempt: int = 1) -> PublishRequest:
        path = room / "adapter.safetensors"
        save_file(tensors, path)
        ref = store.put_file(f"jobs/{job}/weights/{attempt}.{version}", path)
        file = WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)
        return PublishRequest(job_id=job, attempt=attempt, version=version, method="store", files=(file,))

    return put


def _code(action: Callable[[], object]) -> str:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value.code


def _distance(model: LlamaForCausalLM, prompt: tuple[int, ...], completion: Completion) -> float:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        own = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    chosen = own.gather(-1, ids[0, len(prompt) :, None])[:, 0]
    return float((chosen - torch.tensor(completion.logprobs)).abs().max())


def _assert_serves(
    engine: AdapterEngine, job: str, model: LlamaForCausalLM, version: int, attempt: int = 1
) -> None:
    response = engine.serving(job, attempt).generate(REQUEST, Event())
    for prompt, group in zip(REQUEST.prompts, response.completions, strict=True):
        for completion in group:
            assert [span.version for span in completion.weight_versions] == [version]
            assert _distance(model, prompt, completion) < TOLERANCE


def test_adapters_of_two_jobs_stay_apart_and_are_replaced_in_place(
    engine: AdapterEngine, announce: Callable[..., PublishRequest]
) -> None:
    one, two, newer = _adapter(1), _adapter(2), _adapter(3)
    _publish(engine, announce(one, "job-1", 1))
    _publish(engine, announce(two, "job-2", 5))
    _assert_serves(engine, "job-1", _merged(one), 1)
    _assert_serves(engine, "job-2", _merged(two), 5)
    _publish(engine, announce(newer, "job-1", 2))
    _assert_serves(engine, "job-1", _merged(newer), 2)
    _assert_serves(engine, "job-2", _merged(two), 5)


def test_limits_and_fences_are_named(engine: AdapterEngine, announce: Callable[..., PublishRequest]) -> None:
    adapter = _adapter(3)
    publish = engine.adapters.publish
    assert _code(lambda: publish(announce(adapter, "job-1", 2), SHAPE)) == "stale_version"
    assert _code(lambda: publish(announce(adapter, "job-3", 1), SHAPE)) == "adapter_slots"
    wide = AdapterShape(16, 8.0, SHAPE.target_modules)
    assert _code(lambda: publish(announce(adapter, "job-1", 3), wide)) == "adapter_rank"
    assert _code(lambda: engine.generate_with_adapter("job-3", 1, REQUEST, Event())) == "adapter_missing"
    with engine.adapters.in_use("job-1", 1):
        assert _code(lambda: publish(announce(adapter, "job-1", 3), SHAPE)) == "adapter_busy"
    unfit = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 7)}
    assert _code(lambda: publish(announce(unfit, "job-1", 3), SHAPE)) == "engine_error"
    _assert_serves(engine, "job-1", _merged(adapter), 2)


def test_a_new_attempt_takes_over_and_the_old_one_is_fenced(
    engine: AdapterEngine, announce: Callable[..., PublishRequest]
) -> None:
    adapter = _adapter(4)
    _publish(engine, announce(adapter, "job-1", 1, attempt=2))
    _assert_serves(engine, "job-1", _merged(adapter), 1, attempt=2)
    assert _code(lambda: engine.generate_with_adapter("job-1", 1, REQUEST, Event())) == "fenced"
    assert _code(lambda: engine.adapters.publish(announce(adapter, "job-1", 9), SHAPE)) == "fenced"


def test_a_job_that_is_over_frees_its_slot(
    engine: AdapterEngine, announce: Callable[..., PublishRequest]
) -> None:
    engine.adapters.drop("job-2")
    adapter = _adapter(5)
    _publish(engine, announce(adapter, "job-3", 1))
    _assert_serves(engine, "job-3", _merged(adapter), 1)
