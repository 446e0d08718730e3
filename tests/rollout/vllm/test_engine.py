"""Real vLLM on the CPU with a tiny tied model. Starts are slow: one for the file, and one for each death."""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import Completion, GenerateRequest, GenerateResponse, Sampling
from powermean.processes import marked
from rollout.engine import CancelledError, EngineError, Fence
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.served_vllm import largest
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.weights.files import WeightWriter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

JOB = "job-1"
CONTEXT = 1024
PROMPTS = ((9, 4, 10, 7), (9, 4, 11, 7), (12, 5, 8))
TOLERANCE = 1e-3  # of a log-prob, in float32, against a transformers forward pass

Models = dict[int, LlamaForCausalLM]  # by the version that they were published as


def _model(seed: int) -> LlamaForCausalLM:
    """vLLM's attention on CPUs takes no heads below 32."""
    torch.manual_seed(seed)
    config = tiny_config(
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models() -> Models:
    return {0: _model(0)}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def store(room: Path) -> ArtefactStore:
    return ArtefactStore((room / "artefacts").as_uri())


@pytest.fixture(scope="module")
def engine(room: Path, store: ArtefactStore, models: Models) -> Iterator[VllmEngine]:
    folder = room / "model"
    models[0].save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    (room / "shm").mkdir()
    started = load_engine(
        VllmOptions(folder, "float32", max_num_seqs=16),
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(store, room / "shm"),
        deadlines=Deadlines(start=500, generate=200, sync_step=120),
    )
    yield started
    started.close()
    assert not _processes(started)


@pytest.fixture
def publish(engine: VllmEngine, room: Path, store: ArtefactStore, models: Models) -> Callable[..., None]:
    def send(version: int, method: str = "shm", attempt: int = 1) -> None:
        model = models.setdefault(version, _model(version))
        writer = WeightWriter(
            JOB,
            attempt,
            method,
            torch.float32,
            store,
            room,
            shared_memory=room / "shm",  # type: ignore[arg-type]
        )
        request = writer.write(model, version)
        try:
            engine.publish(request)
        finally:
            writer.discard(version)

    return send


def _processes(engine: VllmEngine) -> set[int]:
    return marked(vllm_server._MARK, engine._server._mark)


def _ask(engine: VllmEngine, n: int = 2, prompts: object = PROMPTS, **sampling: object) -> GenerateResponse:
    chosen = {"max_new_tokens": 8} | sampling
    request = GenerateRequest.model_validate({"prompts": prompts, "n": n, "sampling": chosen})
    return engine.generate(request, Event())


def _code(action: Callable[[], object]) -> str:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value.code


def _assert_agrees(
    prompt: tuple[int, ...], completion: Completion, models: Mapping[int, LlamaForCausalLM], heat: float = 1.0
) -> None:
    """Each token's log-prob is that of the weights that its span names."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    covered = 0
    for span in completion.weight_versions:
        assert span.start == covered < span.end
        covered = span.end
        with torch.no_grad():
            logits = models[span.version](input_ids=ids).logits[0, len(prompt) - 1 : -1]
        own = (logits / heat).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        theirs = torch.tensor(completion.logprobs)
        assert (own - theirs)[span.start : span.end].abs().max() < TOLERANCE
    assert covered == len(completion.token_ids) == len(completion.logprobs)


def _assert_serves(engine: VllmEngine, models: Models, version: int, **sampling: float) -> None:
    response = _ask(engine, **sampling)
    for prompt, group in zip(PROMPTS, response.completions, strict=True):
        for completion in group:
            assert [span.version for span in completion.weight_versions] == [version]
            _assert_agrees(prompt, completion, models, sampling.get("temperature") or 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_log_probs_are_those_of_the_tempered_model(
    engine: VllmEngine, models: Models, temperature: float
) -> None:
    _assert_serves(engine, models, engine.state().version, temperature=temperature)


def test_greedy_completions_are_the_argmax(engine: VllmEngine, models: Models) -> None:
    (group,) = _ask(engine, prompts=[PROMPTS[0]], temperature=0.0).completions
    assert group[0].token_ids == group[1].token_ids
    ids = torch.tensor([[*PROMPTS[0], *group[0].token_ids]])
    with torch.no_grad():
        best = models[engine.state().version](input_ids=ids).logits[0].argmax(-1)
    assert tuple(best[len(PROMPTS[0]) - 1 : -1].tolist()) == group[0].token_ids


def test_the_token_that_completes_a_stop_string_or_ends_the_text_is_the_last(engine: VllmEngine) -> None:
    """Also more completions than are sampled at once, and an end token that is no stop string."""
    (group,) = _ask(engine, n=40, prompts=[PROMPTS[0]], max_new_tokens=12, stop=["\n", "12"]).completions
    assert len(group) == 40
    decode = char_tokenizer().decode
    ends = 0
    for completion in group:
        text = decode(completion.token_ids)
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == 12
            assert not text.endswith(("\n", "12", "<end>"))
        else:
            ends += 1
            assert text.endswith(("\n", "12", "<end>"))
        assert not any(stop in decode(completion.token_ids[:-1]) for stop in ("\n", "12", "<end>"))
    assert ends > 0


def test_bad_prompts_are_refused_by_name(engine: VllmEngine) -> None:
    assert engine.state().max_model_len == CONTEXT
    for prompt, code in (((1,) * CONTEXT, "too_long"), ((19,), "invalid"), ((), "invalid")):
        with pytest.raises(EngineError) as caught:
            _ask(engine, prompts=[PROMPTS[0], prompt])
        assert (caught.value.code, caught.value.path) == (code, "prompts.1")


def test_a_request_that_nobody_waits_for_ends_soon(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    cancelled = Event()
    threading.Timer(0.5, cancelled.set).start()
    request = GenerateRequest(prompts=PROMPTS, n=4, sampling=Sampling(max_new_tokens=1000))
    started = time.monotonic()
    with pytest.raises(CancelledError):
        engine.generate(request, cancelled)
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("method", ["shm", "store"])
def test_after_a_publish_log_probs_are_the_new_models(
    engine: VllmEngine, models: Models, publish: Callable[..., None], method: str
) -> None:
    """The output layer follows the embedding that it is tied to, and no cache of the old weights is used."""
    version = engine.state().version + 1
    _ask(engine)  # fills the prefix cache
    publish(version, method)
    assert (engine.state().version, engine.state().attempt) == (version, 1)
    _assert_serves(engine, models, version)


def test_a_publish_in_mid_generation_shows_in_the_spans(
    engine: VllmEngine, models: Models, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    before = engine.state().version
    replies: list[GenerateResponse] = []
    asking = threading.Thread(
        target=lambda: replies.append(_ask(engine, n=4, prompts=[PROMPTS[0]], max_new_tokens=1000))
    )
    sampled = _sampled_tokens(engine)
    asking.start()
    _until(lambda: _sampled_tokens(engine) > sampled + 40)
    publish(before + 1)
    asking.join(200)
    (group,) = replies[0].completions
    for completion in group:
        assert [span.version for span in completion.weight_versions] == [before, before + 1]
        assert len(completion.token_ids) == 1000
        _assert_agrees(PROMPTS[0], completion, models)
    _assert_serves(engine, models, before + 1)


def test_what_does_not_fit_changes_nothing(
    engine: VllmEngine, models: Models, publish: Callable[..., None], room: Path, store: ArtefactStore
) -> None:
    version = engine.state().version
    assert _code(lambda: publish(version)) == "stale_version"
    writer = WeightWriter(JOB, 1, "store", torch.float32, store, room)
    narrow = LlamaForCausalLM(tiny_config(num_attention_heads=2, num_key_value_heads=1, intermediate_size=96))
    assert _code(lambda: engine.publish(writer.write(narrow, version + 1))) == "weights_mismatch"
    good = writer.write(models[0], version + 1)
    forged = good.files[0].model_copy(update={"sha256": "0" * 64})
    corrupt = good.model_copy(update={"files": (forged, *good.files[1:])})
    assert _code(lambda: engine.publish(corrupt)) in {"weights_corrupt", "artefact_missing", "not_found"}
    assert _code(lambda: engine.publish(good.model_copy(update={"job_id": "job-2"}))) == "other_job"
    _assert_serves(engine, models, version)


def test_a_dead_engine_is_reported_started_anew_and_takes_its_weights_again(
    engine: VllmEngine, models: Models, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    version = engine.state().version
    threading.Timer(1.0, lambda: os.kill(_worker(engine), signal.SIGKILL)).start()
    assert _code(lambda: _ask(engine, max_new_tokens=1000)) in {"engine_died", "engine_error"}
    _until(lambda: not engine.state().ready)
    assert _code(lambda: _ask(engine)) == "engine_starting"
    _until(lambda: engine.state().ready, 500)
    assert _code(lambda: _ask(engine)) == "weights_incomplete"
    publish(version)
    _assert_serves(engine, models, version)


def test_a_publish_to_an_engine_that_hangs_ends_with_a_named_error(
    engine: VllmEngine, models: Models, publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = engine.state().version
    monkeypatch.setattr(engine._server, "deadlines", replace(engine._server.deadlines, sync_step=5.0))
    os.kill(_worker(engine), signal.SIGSTOP)
    started = time.monotonic()
    assert _code(lambda: publish(version + 1)) == "engine_timeout"
    assert time.monotonic() - started < 30.0
    assert engine.state().version == version
    monkeypatch.undo()
    _until(lambda: engine._server.starts == 3, 500)
    publish(version)
    _assert_serves(engine, models, version)


def _worker(engine: VllmEngine) -> int:
    """The process that holds the model."""
    return largest(_processes(engine))


def _sampled_tokens(engine: VllmEngine) -> float:
    with engine._server._client(10.0) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
