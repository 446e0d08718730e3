"""Published weights are the model's, announced by their hash, once each, and gone afterwards."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.models import LoraSpec
from tests.support.tiny_model import tiny_config
from trainer.learner.lora import attach, served_adapter
from trainer.learner.model_state import unique_weights
from trainer.weights import files as publish
from trainer.weights.files import WeightWriter, fits_shared_memory, remove_stale


def writer(folder: Path, method: str = "shm", dtype: torch.dtype = torch.float32) -> WeightWriter:
    for name in ("memory", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    return WeightWriter(
        job_id="job-a",
        attempt=2,
        method=method,
        dtype=dtype,
        store=ArtefactStore(f"file://{folder}/store"),
        scratch=folder / "scratch",
        shared_memory=folder / "memory",
    )


def model(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=tied))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_shared_memory_holds_every_weight_once(
    tmp_path: Path, tied: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "SHARD_BYTES", 50_000)  # so that there are several files
    source = model(tied)
    request = writer(tmp_path, dtype=dtype).write(source, version=5)
    assert (request.job_id, request.attempt, request.version, request.method) == ("job-a", 2, 5, "shm")
    assert len(request.files) > 1
    found: dict[str, torch.Tensor] = {}
    for file in request.files:
        path = tmp_path / "memory" / file.uri.removeprefix("shm:")
        assert path.stat().st_size == file.size
        assert path.stat().st_mode & 0o777 == 0o600
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        shard = load_file(path)
        assert not found.keys() & shard.keys()
        found |= shard
    assert ("lm_head.weight" in found) is not tied
    for name, weight in source.named_parameters():
        assert torch.equal(found[name], weight.to(dtype)), name


def test_the_store_way_gives_the_same_bytes_and_cleans_up(tmp_path: Path) -> None:
    by_store, by_memory = writer(tmp_path, "store"), writer(tmp_path)
    sent = by_store.write(model(), version=1)
    assert [f.sha256 for f in sent.files] == [f.sha256 for f in by_memory.write(model(), version=1).files]
    ref = ArtefactRef(
        key=sent.files[0].uri.removeprefix("store:"), sha256=sent.files[0].sha256, size=sent.files[0].size
    )
    assert by_store.store.get_bytes(ref)
    assert not list((tmp_path / "scratch").iterdir())
    by_store.discard(1)
    assert not by_store.store.exists(ref)


def test_discard_removes_one_version_only(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(model(), version=1)
    one.write(model(), version=11)
    one.discard(1)
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["powermean-job-a.2.11.0.safetensors"]


def test_what_a_killed_attempt_left_is_removed_and_other_jobs_files_are_not(tmp_path: Path) -> None:
    left, other = (
        tmp_path / "powermean-job-a.1.7.0.safetensors",
        tmp_path / "powermean-job-ab.1.7.0.safetensors",
    )
    left.write_bytes(b"x")
    other.write_bytes(b"x")
    remove_stale("job-a", tmp_path)
    assert not left.exists()
    assert other.exists()


def test_a_file_that_is_there_already_is_not_written_through(tmp_path: Path) -> None:
    """Others may write into the shared folder: a planted link must not lead our bytes elsewhere."""
    one = writer(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.symlink(victim, tmp_path / "memory" / "powermean-job-a.2.3.0.safetensors")
    one.write(model(), version=3)
    assert victim.read_text() == "mine"


def test_counters_keep_their_own_type(tmp_path: Path) -> None:
    given = model()
    given.register_buffer("steps", torch.tensor([2**40]))
    request = writer(tmp_path, dtype=torch.bfloat16).write(given, version=1)
    found = load_file(tmp_path / "memory" / request.files[0].uri.removeprefix("shm:"))
    assert found["steps"].dtype == torch.int64
    assert found["steps"].item() == 2**40


def test_room_in_shared_memory(tmp_path: Path) -> None:
    assert fits_shared_memory(model(), torch.float32, tmp_path)
    assert not fits_shared_memory(model(), torch.float32, tmp_path / "none")


def test_of_a_lora_job_either_the_adapter_or_the_merged_weights_have_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(size: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=size)
        monkeypatch.setattr("trainer.weights.files.shutil.disk_usage", lambda _folder: usage)

    plain = sum(4 * weight.numel() for _, weight in unique_weights(model().state_dict()))
    with_adapter = attach(model(), LoraSpec(rank=2), "tiny")
    adapter = sum(4 * weight.numel() for weight in dict(served_adapter(with_adapter)).values())
    assert adapter < plain
    for alone, size in ((True, adapter), (False, plain)):
        room(int(1.2 * size))
        assert fits_shared_memory(with_adapter, torch.float32, tmp_path, adapter_alone=alone)
        room(size)
        assert not fits_shared_memory(with_adapter, torch.float32, tmp_path, adapter_alone=alone)


def test_tied_weights_are_named_once() -> None:
    names = [name for name, _ in unique_weights(model().state_dict())]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
