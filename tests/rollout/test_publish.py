"""New weights: verified before they are used, never older ones, tied embeddings in step."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import Completion, GenerateRequest, PublishRequest, Sampling, WeightFile
from rollout.engine import EngineError
from rollout.transformers.engine import TransformersEngine
from tests.support.tiny_engines import JOB, MakeEngine, Publish, save_tiny_model

REQUEST = GenerateRequest(prompts=((1, 10, 2, 13), (4, 10)), n=3, sampling=Sampling(max_new_tokens=6, seed=0))


def _weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Each weight once, as the trainer publishes them."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _other(folder: Path, *, tied: bool = True) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(save_tiny_model(folder / "other", tied=tied, seed=7)).eval()


def _log_probs(model: LlamaForCausalLM, prompt: tuple[int, ...], completion: Completion) -> list[float]:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        log_softmax = model(input_ids=ids).logits[0].log_softmax(-1)
    return [
        float(log_softmax[len(prompt) - 1 + place, token]) for place, token in enumerate(completion.token_ids)
    ]


def _assert_serves(engine: TransformersEngine, model: LlamaForCausalLM, version: int) -> None:
    for prompt, group in zip(REQUEST.prompts, engine.generate(REQUEST, Event()).completions, strict=True):
        for completion in group:
            assert completion.logprobs == pytest.approx(_log_probs(model, prompt, completion), abs=1e-4)
            (span,) = completion.weight_versions
            assert (span.version, span.start, span.end) == (version, 0, len(completion.token_ids))


@pytest.mark.parametrize("tied", [True, False])
def test_published_weights_are_served(
    tmp_path: Path, make_engine: MakeEngine, stored_weights: Publish, tied: bool
) -> None:
    """Tied: the output layer must follow the embedding that it shares."""
    engine = make_engine(save_tiny_model(tmp_path / "own", tied=tied))
    model = _other(tmp_path, tied=tied)
    assert ("lm_head.weight" in _weights(model)) is not tied
    engine.publish(stored_weights(_weights(model), version=3))
    assert (engine.state().version, engine.state().attempt) == (3, 1)
    _assert_serves(engine, model, version=3)


def test_a_tied_weight_may_come_under_its_other_name(
    tmp_path: Path, engine: TransformersEngine, stored_weights: Publish
) -> None:
    model = _other(tmp_path)
    tensors = _weights(model)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    engine.publish(stored_weights(tensors))
    _assert_serves(engine, model, version=1)


def test_several_files_in_shared_memory(
    tmp_path: Path, engine: TransformersEngine, shared_memory: Path
) -> None:
    model = _other(tmp_path)
    tensors = sorted(_weights(model).items())
    files = []
    for number, part in enumerate((tensors[:5], tensors[5:])):
        path = shared_memory / f"powermean-{JOB}.1.1.{number}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in part}, path)
        files.append(_shared_file(path))
    engine.publish(_publish(*files))
    _assert_serves(engine, model, version=1)


@pytest.mark.parametrize("version", [2, 1, 0])
def test_a_version_never_goes_back(
    tmp_path: Path, engine: TransformersEngine, stored_weights: Publish, version: int
) -> None:
    model = _other(tmp_path)
    engine.publish(stored_weights(_weights(model), version=2))
    with pytest.raises(EngineError, match=f"version {version} is not above version 2") as error:
        engine.publish(stored_weights(_weights(model), version=version))
    assert (error.value.status, error.value.code) == (409, "stale_version")
    _assert_serves(engine, model, version=2)


def test_an_attempt_never_goes_back(tmp_path: Path, make_engine: MakeEngine, stored_weights: Publish) -> None:
    engine = make_engine(attempt=2)
    weights = _weights(_other(tmp_path))
    with pytest.raises(EngineError, match="serves attempt 2") as error:
        engine.publish(stored_weights(weights, version=9, attempt=1))
    assert (error.value.status, error.value.code) == (409, "fenced")
    engine.publish(stored_weights(weights, version=9, attempt=2))
    engine.publish(stored_weights(weights, version=4, attempt=3))  # it resumed from an older checkpoint
    assert (engine.state().version, engine.state().attempt) == (4, 3)
    with pytest.raises(EngineError, match="serves attempt 3"):
        engine.publish(stored_weights(weights, version=10, attempt=2))


def test_another_jobs_weights_are_refused(
    tmp_path: Path, engine: TransformersEngine, stored_weights: Publish
) -> None:
    request = stored_weights(_weights(_other(tmp_path))).model_copy(update={"job_id": "job-2"})
    with pytest.raises(EngineError, match="serves job job-1") as error:
        engine.publish(request)
    assert (error.value.status, error.value.code) == (403, "other_job")


def _without_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def _with_surplus(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.surplus"] = torch.zeros(1)


def _with_wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.zeros(63)


def _with_both_names(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_norm, r"model\.norm\.weight is missing \(1 in all\)"),
        (_with_surplus, r"no weight model\.surplus"),
        (_with_wrong_shape, r"model\.norm\.weight has shape \[63\], the model's is \[64\]"),
        (_with_both_names, "under two names"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    tmp_path: Path,
    engine: TransformersEngine,
    tiny_folder: Path,
    stored_weights: Publish,
    spoil: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    tensors = dict(_weights(_other(tmp_path)))
    spoil(tensors)
    with pytest.raises(EngineError, match=message) as error:
        engine.publish(stored_weights(tensors))
    assert (error.value.status, error.value.code) == (409, "weights_mismatch")
    _assert_serves(engine, LlamaForCausalLM.from_pretrained(tiny_folder), version=0)


def test_a_damaged_file_changes_nothing(
    tmp_path: Path,
    engine: TransformersEngine,
    tiny_folder: Path,
    store: ArtefactStore,
    stored_weights: Publish,
) -> None:
    request = stored_weights(_weights(_other(tmp_path)))
    (stored,) = (tmp_path / "artefacts" / "jobs").rglob("*.safetensors")
    with stored.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(EngineError, match="is not as announced") as error:
        engine.publish(request)
    assert error.value.code == "weights_corrupt"
    stored.unlink()
    with pytest.raises(EngineError) as error:
        engine.publish(request)
    assert error.value.code == "artefact_missing"
    _assert_serves(engine, LlamaForCausalLM.from_pretrained(tiny_folder), version=0)


class BreaksOff:
    """A weight that can't be read any more."""

    def __init__(self, path: Path, framework: str) -> None:
        self._opened = safe_open(path, framework)

    def __enter__(self) -> "BreaksOff":
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        if name == "model.norm.weight":
            raise OSError("the disk is gone")
        return self._file.get_tensor(name)


def test_a_model_of_mixed_versions_is_never_sampled(
    tmp_path: Path, engine: TransformersEngine, stored_weights: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _other(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("rollout.transformers.engine.safe_open", BreaksOff)
        with pytest.raises(OSError, match="the disk is gone"):
            engine.publish(stored_weights(_weights(model), version=1))
    assert not engine.state().ready
    with pytest.raises(EngineError, match="broke off") as error:
        engine.generate(REQUEST, Event())
    assert error.value.code == "weights_incomplete"
    engine.publish(stored_weights(_weights(model), version=1))
    _assert_serves(engine, model, version=1)


@pytest.mark.parametrize(
    "uri",
    [
        "shm:../powermean-secret.safetensors",
        "shm:/etc/passwd",
        "shm:powermean-../x.safetensors",
        "shm:other.safetensors",
        "shm:powermean-a.safetensors/..",
        "store:../../etc/passwd",
        "file:///etc/passwd",
        "powermean-x.safetensors",
    ],
)
def test_addresses_outside_the_folder_are_refused(
    engine: TransformersEngine, tmp_path: Path, uri: str
) -> None:
    (tmp_path / "powermean-secret.safetensors").write_bytes(b"secret")
    for method in ("shm", "store"):
        request = PublishRequest.model_validate(
            {
                "job_id": JOB,
                "attempt": 1,
                "version": 1,
                "method": method,
                "files": [{"uri": uri, "sha256": "0" * 64, "size": 6}],
            }
        )
        with pytest.raises(EngineError) as error:
            engine.publish(request)
        assert error.value.code in ("invalid", "artefact_key_invalid")
        assert error.value.path == "files.0.uri"


def test_a_link_or_a_missing_file_in_shared_memory_is_refused(
    engine: TransformersEngine, shared_memory: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = shared_memory / "powermean-link.safetensors"
    link.symlink_to(secret)
    with pytest.raises(EngineError, match="not a plain file"):
        engine.publish(_publish(WeightFile(uri=f"shm:{link.name}", sha256="0" * 64, size=6)))
    with pytest.raises(EngineError, match=r"no file powermean-gone\.safetensors") as error:
        engine.publish(_publish(WeightFile(uri="shm:powermean-gone.safetensors", sha256="0" * 64, size=6)))
    assert error.value.code == "weights_unavailable"


def _shared_file(path: Path) -> WeightFile:
    data = path.read_bytes()
    return WeightFile(uri=f"shm:{path.name}", sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _publish(*files: WeightFile) -> PublishRequest:
    return PublishRequest(job_id=JOB, attempt=1, version=1, method="shm", files=files)
