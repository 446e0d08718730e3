"""Weights in place: the engine samples from the trainer's own, and not while they change."""

from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from powermean.contracts.rollout import GenerateRequest, HoldRequest, PublishRequest, Sampling
from rollout.engine import EngineError, Fence
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource
from tests.support.tiny_engines import JOB, MakeEngine, Publish, save_tiny_model
from trainer.policy.loading import make_policy
from trainer.rollouts.batching import collate
from trainer.weights.in_place import InPlaceWriter
from trainer.weights.probe import largest_difference

REQUEST = GenerateRequest(prompts=((1, 10, 2, 13), (4, 10)), n=3, sampling=Sampling(max_new_tokens=6, seed=0))


class Pair:
    """A trainer's model and the engine beside it."""

    def __init__(self, engine: TransformersEngine, model: LlamaForCausalLM, shared_memory: Path) -> None:
        self.engine, self.model, self.shared_memory = engine, model, shared_memory
        self.policy = make_policy(model, dtype=torch.float32, temperature=1.0)
        self.writer = InPlaceWriter(JOB, 1, shared_memory)

    def publish(self, version: int) -> None:
        self.engine.publish(self.writer.write(self.model, version))

    def change(self, factor: float) -> None:
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(factor)

    def difference(self) -> float:
        """Between the log-probs that both sides have of the same completions: the largest, in nats."""
        completions = self.engine.generate(REQUEST, Event()).completions
        return largest_difference(self.policy, collate(REQUEST.prompts, completions, 0))

    def served_version(self) -> int:
        spans = self.engine.generate(REQUEST, Event()).completions[0][0].weight_versions
        return spans[0].version


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, make_engine: MakeEngine, shared_memory: Path
) -> Pair:
    engine = make_engine(save_tiny_model(tmp_path / "engine", tied=request.param))
    folder = save_tiny_model(tmp_path / "trainer", tied=request.param, seed=3)
    return Pair(engine, AutoModelForCausalLM.from_pretrained(folder), shared_memory)


def hold(version: int, attempt: int = 1, job_id: str = JOB) -> HoldRequest:
    return HoldRequest(job_id=job_id, attempt=attempt, version=version)


def refused(call: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value


@pytest.mark.slow
def test_the_engine_samples_from_the_trainers_own_weights(pair: Pair) -> None:
    """From the first publish on, of the version that the engine has of itself; none sends a byte after it."""
    assert "in_place" in pair.engine.state().methods
    assert pair.difference() > 0.1  # or the rest would show nothing
    pair.publish(0)
    assert pair.difference() < 1e-4
    for version in (1, 2):
        pair.engine.hold(hold(version))
        pair.change(0.8)
        pair.publish(version)
        assert pair.difference() < 1e-4
        assert pair.served_version() == version
    pair.change(0.8)  # without a word: what is shared needs none
    assert pair.difference() < 1e-4
    assert len(list(pair.shared_memory.iterdir())) == 1


@pytest.mark.slow
def test_nothing_is_sampled_between_a_hold_and_the_next_publish(pair: Pair) -> None:
    pair.publish(0)
    for _ in range(2):  # it may be said twice
        pair.engine.hold(hold(1))
        error = refused(lambda: pair.engine.generate(REQUEST, Event()))
        assert (error.status, error.code) == (503, "weights_incomplete")
        assert "is changing" in str(error)
    assert refused(lambda: pair.publish(0)).code == "stale_version"  # a late one must not let it go on
    assert refused(lambda: pair.engine.generate(REQUEST, Event())).code == "weights_incomplete"
    pair.publish(1)
    assert pair.served_version() == 1


def test_a_version_may_be_published_in_place_again_and_none_before_it(pair: Pair) -> None:
    pair.publish(2)
    pair.publish(2)
    assert pair.served_version() == 2
    assert refused(lambda: pair.publish(1)).code == "stale_version"


def test_a_hold_is_fenced_as_a_publish_is(pair: Pair) -> None:
    pair.publish(2)
    assert refused(lambda: pair.engine.hold(hold(2))).code == "stale_version"  # one that came too late
    assert refused(lambda: pair.engine.hold(hold(3, job_id="job-2"))).code == "other_job"
    pair.engine.publish(
        PublishRequest(job_id=JOB, attempt=2, version=0, method="in_place", memory=_copy(pair, attempt=2))
    )
    assert refused(lambda: pair.engine.hold(hold(9))).code == "fenced"
    assert pair.served_version() == 0


def _copy(pair: Pair, attempt: int) -> str:
    """The memory of another attempt."""
    writer = InPlaceWriter(JOB, attempt, pair.shared_memory)
    return str(writer.write(pair.model, 0).memory)


@pytest.mark.parametrize(
    "name",
    [
        f"powermean-{JOB}.2.weights.safetensors",
        "powermean-job-2.1.weights.safetensors",
        f"../powermean-{JOB}.1.weights.safetensors",
        f"powermean-{JOB}.1./../x.safetensors",
        f"powermean-{JOB}.1.link.safetensors",
    ],
)
def test_memory_of_anybody_else_is_refused(pair: Pair, tmp_path: Path, name: str) -> None:
    pair.publish(1)
    (pair.shared_memory / f"powermean-{JOB}.1.link.safetensors").symlink_to(tmp_path / "x")
    request = PublishRequest(job_id=JOB, attempt=1, version=2, method="in_place", memory=name)
    error = refused(lambda: pair.engine.publish(request))
    assert (error.code, error.path) == ("invalid", "memory")
    assert pair.served_version() == 1


def test_memory_that_is_gone_or_no_safetensors_file_changes_nothing(pair: Pair) -> None:
    request = pair.writer.write(pair.model, 1)
    file = pair.shared_memory / str(request.memory)
    whole = file.read_bytes()
    for content in (b"", b"nonsense", whole[:-100]):
        file.unlink()
        file.write_bytes(content)
        assert refused(lambda: pair.engine.publish(request)).code == "weights_mismatch"
    file.unlink()
    assert refused(lambda: pair.engine.publish(request)).code == "weights_unavailable"
    assert pair.served_version() == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.bfloat16(), "is torch.bfloat16, the model's is torch.float32"),
        (lambda model: model.register_buffer("surplus", torch.zeros(1)), "no weight surplus"),
        (lambda model: model.model.layers.pop(0), "is missing"),
        (lambda model: setattr(model.model, "norm", nn.LayerNorm(63, bias=False)), r"has shape \[63\]"),
    ],
    ids=["type", "surplus", "missing", "shape"],
)
def test_weights_that_do_not_fit_change_nothing(
    pair: Pair, spoil: Callable[[nn.Module], object], message: str
) -> None:
    spoil(pair.model)
    with pytest.raises(EngineError, match=message) as caught:
        pair.publish(1)
    assert caught.value.code == "weights_mismatch"
    assert pair.served_version() == 0


def test_a_publish_by_files_gives_the_engine_memory_of_its_own_again(
    pair: Pair, stored_weights: Publish
) -> None:
    """Into the trainer's it must not write. After that it may share once more."""
    pair.publish(1)
    kept = {name: weight.detach().clone() for name, weight in pair.model.named_parameters()}
    pair.engine.publish(stored_weights({name: 0.5 * weight for name, weight in kept.items()}, version=2))
    assert all(torch.equal(weight, kept[name]) for name, weight in pair.model.named_parameters())
    assert pair.difference() > 0.1
    pair.publish(3)
    assert pair.difference() < 1e-4


def test_memory_that_was_made_anew_under_the_same_name_is_mapped_anew(pair: Pair) -> None:
    pair.publish(1)
    pair.writer.close()
    pair.change(0.5)
    pair.writer = InPlaceWriter(JOB, 1, pair.shared_memory)
    pair.publish(2)
    pair.change(0.5)
    assert pair.difference() < 1e-4


class OfTwoTypes:
    """Loads models with a number of another type, as some keep on purpose."""

    @staticmethod
    def from_pretrained(folder: Path, **options: object) -> LlamaForCausalLM:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        model.register_buffer("scale", torch.ones(1, dtype=torch.float64))
        return model


@pytest.mark.parametrize(
    "manifest",
    [{}, {"memory": ""}, {"memory": "x", "files": [{"uri": "shm:x", "sha256": "0" * 64, "size": 1}]}],
)
def test_a_publish_in_place_names_the_memory_and_nothing_else(manifest: dict[str, object]) -> None:
    facts = {"job_id": JOB, "attempt": 1, "version": 1, "method": "in_place"}
    with pytest.raises(ValidationError, match="lists memory, and nothing else"):
        PublishRequest.model_validate(facts | manifest)


def test_weights_of_two_types_are_not_shared(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer, which casts them all, can't know which these are."""
    monkeypatch.setattr("rollout.transformers.engine.AutoModelForCausalLM", OfTwoTypes)
    assert make_engine().state().methods == ("store", "shm")


def test_weights_in_bfloat16_are_shared_where_the_trainers_are(tmp_path: Path, shared_memory: Path) -> None:
    engine = load_engine(
        save_tiny_model(tmp_path / "model"),
        device="cpu",
        dtype=torch.bfloat16,
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(None, shared_memory),
        max_model_len=None,
        max_batch_tokens=16384,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert "in_place" in engine.state().methods
    engine.publish(InPlaceWriter(JOB, 1, shared_memory).write(model, 1))
    before = engine.generate(REQUEST, Event())
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)
    assert engine.generate(REQUEST, Event()) != before
