"""Real vLLM with LoRA adapters of two jobs on one tiny model; one start for the file."""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.models import LoraSpec
from powermean.contracts.rollout import (
    AdapterShape,
    Completion,
    GenerateRequest,
    GenerateResponse,
    PublishRequest,
    Sampling,
    WeightFile,
)
from rollout.engine import EngineError
from rollout.vllm.adapter_engine import AdapterEngine, load_adapter_engine
from rollout.vllm.command import VllmOptions
from rollout.vllm.requests import complete
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.learner.final_model import ADAPTER_FOLDER, save_model
from trainer.learner.lora import attach
from trainer.policy.loading import make_policy

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
Announce = Callable[..., PublishRequest]


def _base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = tiny_config(
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, max_position_embeddings=1024
    )
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
def announce(room: Path, store: ArtefactStore) -> Announce:
    def put(tensors: Tensors, job: str, version: int, attempt: int = 1) -> PublishRequest:
        path = room / "adapter.safetensors"
        save_file(tensors, path)
        ref = store.put_file(f"jobs/{job}/weights/{attempt}.{version}", path)
        file = WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)
        return PublishRequest(
            job_id=job, attempt=attempt, version=version, method="store", files=(file,), adapter=SHAPE
        )

    return put


def _code(action: Callable[[], object]) -> str:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value.code


def _distance(model: nn.Module, prompt: tuple[int, ...], completion: Completion) -> float:
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
    engine: AdapterEngine, announce: Announce
) -> None:
    one, two, newer = _adapter(1), _adapter(2), _adapter(3)
    _publish(engine, announce(one, "job-1", 1))
    _publish(engine, announce(two, "job-2", 5))
    _assert_serves(engine, "job-1", _merged(one), 1)
    _assert_serves(engine, "job-2", _merged(two), 5)
    _publish(engine, announce(newer, "job-1", 2))
    _assert_serves(engine, "job-1", _merged(newer), 2)
    _assert_serves(engine, "job-2", _merged(two), 5)


def test_limits_and_fences_are_named(engine: AdapterEngine, announce: Announce) -> None:
    adapter = _adapter(3)
    assert _code(lambda: _publish(engine, announce(adapter, "job-1", 2))) == "stale_version"
    assert _code(lambda: _publish(engine, announce(adapter, "job-3", 1))) == "adapter_slots"
    wide = SHAPE.model_copy(update={"rank": 16})
    request = announce(adapter, "job-1", 3).model_copy(update={"adapter": wide})
    assert _code(lambda: _publish(engine, request)) == "adapter_rank"
    job = engine.serving("job-3", 1)
    assert _code(lambda: job.generate(REQUEST, Event())) == "adapter_missing"
    unfit = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 7)}
    assert _code(lambda: _publish(engine, announce(unfit, "job-1", 3))) == "engine_error"
    _assert_serves(engine, "job-1", _merged(adapter), 2)


def test_completions_in_flight_keep_the_adapter_they_began_with(
    engine: AdapterEngine, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More versions than vLLM computes with at once: those in excess wait, and none is mixed up."""
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    long = GenerateRequest(prompts=(PROMPT,), n=4, sampling=Sampling(max_new_tokens=500))
    replies: dict[int, GenerateResponse] = {}

    def ask(version: int) -> None:
        replies[version] = engine.serving("job-1", 1).generate(long, Event())

    threads = []
    for version in range(3, 9):
        _publish(engine, announce(_adapter(version), "job-1", version))
        threads.append(threading.Thread(target=ask, args=(version,)))
        threads[-1].start()
        _until(lambda version=version: engine.adapters._adapters["job-1"].calls == 1)
    _assert_serves(engine, "job-2", _merged(_adapter(2)), 5)
    for thread in threads:
        thread.join(200)
    for version, reply in replies.items():
        model = _merged(_adapter(version))
        for completion in reply.completions[0]:
            assert [span.version for span in completion.weight_versions] == [version]
            assert len(completion.token_ids) == 500
            assert _distance(model, PROMPT, completion) < TOLERANCE
    assert sorted(replies) == list(range(3, 9))
    assert _loaded(engine) == {"job-1.1.8", "job-2.1.5"}


def test_a_new_attempt_takes_over_and_the_old_one_is_fenced(
    engine: AdapterEngine, announce: Announce
) -> None:
    adapter, old = _adapter(4), engine.serving("job-1", 1)
    _publish(engine, announce(adapter, "job-1", 1, attempt=2))
    _assert_serves(engine, "job-1", _merged(adapter), 1, attempt=2)
    assert _code(lambda: old.generate(REQUEST, Event())) == "fenced"
    assert _code(lambda: engine.serving("job-1", 1)) == "fenced"
    assert _code(lambda: old.publish(announce(adapter, "job-1", 9))) == "fenced"


def test_a_job_that_is_over_frees_its_slot(engine: AdapterEngine, announce: Announce) -> None:
    engine.serving("job-2", 1).drop_adapter()
    adapter = _adapter(5)
    _publish(engine, announce(adapter, "job-3", 1))
    _assert_serves(engine, "job-3", _merged(adapter), 1)


def test_the_exported_adapter_loads_as_it_is(engine: AdapterEngine, tmp_path: Path) -> None:
    """The folder `adapter` of a final model, by vLLM's own interface."""
    torch.manual_seed(0)
    model = attach(_base(), LoraSpec(rank=8, alpha=16), "some/model")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape))
    policy = replace(make_policy(_base(), dtype=torch.float32, temperature=1.0), model=model)
    char_tokenizer().save_pretrained(tmp_path / "base")
    save_model(policy, tmp_path / "base", exported := tmp_path / "model")
    load = {"lora_name": "export", "lora_path": str(exported / ADAPTER_FOLDER)}
    engine._server.call("load adapter", "/v1/load_lora_adapter", body=load)
    groups = complete(engine._server, REQUEST, engine._model.end_tokens, Event(), adapter=("export", 0))
    merged = LlamaForCausalLM.from_pretrained(exported).eval()
    for prompt, group in zip(REQUEST.prompts, groups, strict=True):
        for completion in group:
            assert _distance(model, prompt, completion) < TOLERANCE
            assert _distance(merged, prompt, completion) < TOLERANCE
            assert _distance(_base(), prompt, completion) > 0.1


def _publish(engine: AdapterEngine, request: PublishRequest) -> None:
    engine.serving(request.job_id, request.attempt).publish(request)


def _loaded(engine: AdapterEngine) -> set[str]:
    """job.attempt.version of what vLLM lists."""
    models = engine._server.call("describe", "/v1/models", method="GET")["data"]
    return {model["id"].rpartition(".")[0] for model in models if model["id"] != "base"}


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
