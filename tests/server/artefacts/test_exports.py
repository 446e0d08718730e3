"""`powermean export` against a server that has real checkpoints: the folders load, and are the same model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from powermean.client import Client, ServerUnreachableError
from powermean.contracts.models import LoraSpec
from tests.support.live_server import listening
from tests.support.service_driver import ADMIN_KEY, AttemptDriver, ServiceDriver, example_result
from tests.support.stored_things import finish, put, store_of
from tests.support.terminal import powermean
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.learner import checkpoint
from trainer.learner.lora import attach

LORA = {"rank": 4, "alpha": 8.0}
IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with the folder `tiny`."""
    root = tmp_path_factory.mktemp("roots")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(root / "tiny")
    char_tokenizer().save_pretrained(root / "tiny")
    return root


@pytest.fixture
def server(service: ServiceDriver, roots: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceDriver]:
    """The service behind a socket, and the environment of a person's machine."""
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_URL", url)
        monkeypatch.setenv("POWERMEAN_API_KEY", ADMIN_KEY)
        monkeypatch.setenv("POWERMEAN_MODEL_ROOTS", str(roots))
        yield service


def trained(
    service: ServiceDriver,
    roots: Path,
    scratch: Path,
    lora: dict[str, float] | None = None,
    over: tuple[str, torch.nn.Module] | None = None,
) -> tuple[AttemptDriver, torch.nn.Module]:
    """A job with a checkpoint after step 5, as the trainer saves it, and the model in it.

    `over`: what model.from says, and that model.
    """
    begin = {"folder": "tiny"} if over is None else {"from": over[0]}
    attempt = service.running(model=begin | ({"lora": lora} if lora else {}))
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(roots / "tiny")
    if over is not None:
        model.load_state_dict(over[1].state_dict())
    if lora:
        model = attach(model, LoraSpec(**lora), "tiny")
    with torch.no_grad():
        for weight in (one for one in model.parameters() if one.requires_grad):
            weight += 0.02 * torch.randn_like(weight)
    owner = f"jobs/{attempt.claim.job_id}/checkpoints/1-5"
    optimizer = torch.optim.AdamW(one for one in model.parameters() if one.requires_grad)
    progress = checkpoint.Progress(step=5)
    manifest = checkpoint.store(store_of(service), owner, scratch, model, optimizer, progress, {})
    body = {"step": 5, "manifest": manifest.model_dump(mode="json")}
    assert attempt.post("checkpoints", body).status_code == 204
    return attempt, model


@pytest.mark.slow
def test_a_checkpoint_becomes_the_model_that_was_saved(server: ServiceDriver, roots: Path, tmp_path: Path):
    attempt, model = trained(server, roots, tmp_path)
    job, target = attempt.claim.job_id, tmp_path / "exported"
    done = powermean("export", f"{job}@5", "--to", str(target))
    assert done.exit_code == 0, done.output
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert AutoTokenizer.from_pretrained(target)("1+2=").input_ids
    files = server.person.get(f"/v1/jobs/{job}/checkpoints/5/files").json()["files"]["files"]
    assert "optimizer.safetensors" not in files
    name = f"/v1/jobs/{job}/checkpoints/5/files/model.safetensors"
    ref = files["model.safetensors"]
    assert server.person.get(name).headers["ETag"] == f'"{ref["sha256"]}"'
    assert server.person.get(name.replace("model.", "optimizer.")).status_code == 404
    again = powermean("export", f"{job}@5", "--to", str(target))
    assert "is there already" in again.stderr
    missing = powermean("export", f"{job}@6", "--to", str(tmp_path / "none"))
    assert "has no checkpoint of step 6" in missing.stderr
    assert "It has checkpoints of steps 5" in missing.stderr
    assert "it has no adapter" in powermean("export", job, "--adapter", "--to", str(tmp_path / "none")).stderr


@pytest.mark.slow
def test_an_adapter_is_exported_alone(server: ServiceDriver, roots: Path, tmp_path: Path):
    attempt, model = trained(server, roots, tmp_path, LORA)
    at = f"{attempt.claim.job_id}@5"
    assert powermean("export", at, "--adapter", "--to", str(tmp_path / "adapter")).exit_code == 0
    expected = model(input_ids=IDS).logits
    plain = AutoModelForCausalLM.from_pretrained(roots / "tiny")
    over = PeftModel.from_pretrained(plain, tmp_path / "adapter")(input_ids=IDS).logits
    assert torch.allclose(over, expected, atol=1e-6)
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 28


@pytest.mark.slow
def test_what_an_adapter_is_over_comes_from_the_job_that_began_with_it(
    server: ServiceDriver, roots: Path, tmp_path: Path
):
    parent, whole = trained(server, roots, tmp_path)
    finish(server, parent)
    attempt, model = trained(server, roots, tmp_path, LORA, over=(f"{parent.claim.job_id}@5", whole))
    assert server.person.delete(f"/v1/jobs/{parent.claim.job_id}?cascade=true").is_success
    at, target = f"{attempt.claim.job_id}@5", tmp_path / "merged"
    done = powermean("export", at, "--to", str(target))
    assert done.exit_code == 0, done.output
    expected = model(input_ids=IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(target)(input_ids=IDS).logits
    assert torch.allclose(merged, expected, atol=1e-5)
    assert powermean("export", at, "--adapter", "--to", str(tmp_path / "adapter")).exit_code == 0
    over = PeftModel.from_pretrained(whole, tmp_path / "adapter")(input_ids=IDS).logits
    assert torch.allclose(over, expected, atol=1e-5)


@pytest.mark.slow
def test_a_broken_off_export_goes_on(server: ServiceDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempt, target = server.running(), tmp_path / "model"
    owner = f"jobs/{attempt.claim.job_id}/model"
    files = {name: put(server, owner, name, f"a {name}") for name in ("config.json", "weights")}
    result = example_result(attempt.claim.job_id) | {"model": {"files": files}}
    assert attempt.finish("finished", result=result).status_code == 204
    download, asked = Client.download, list[str]()

    def lose(client: Client, job_id: str, path: str, to: Path) -> None:
        asked.append(path)
        if asked == ["config.json", "weights"]:
            raise ServerUnreachableError("http://lost", OSError("lost"))
        download(client, job_id, path, to)

    monkeypatch.setattr(Client, "download", lose)
    broken = powermean("export", attempt.claim.job_id, "--to", str(target))
    assert (broken.exit_code, "the same command goes on with it" in broken.stderr) == (1, True)
    assert [one.name for one in target.iterdir()] == [".export"]
    (target / ".export/model/of-another").write_text("export")
    again = powermean("export", attempt.claim.job_id, "--to", str(target))
    assert again.exit_code == 0, again.output
    assert asked == ["config.json", "weights", "weights"]
    assert {one.name: one.read_text() for one in target.iterdir()} == {
        "config.json": "a config.json",
        "weights": "a weights",
    }


def test_a_final_model_is_only_downloaded(
    server: ServiceDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    attempt = server.running()
    finish(server, attempt)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no PyTorch here
    done = powermean("export", attempt.claim.job_id, "--to", str(tmp_path / "model"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model" / "config.json").read_text() == "the model"


@pytest.mark.slow
def test_without_pytorch_a_checkpoint_can_not_be_converted(
    server: ServiceDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    attempt = server.running()
    assert attempt.commit(5).status_code == 204
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = powermean("export", f"{attempt.claim.job_id}@5", "--to", str(tmp_path / "model"))
    assert done.exit_code == 1
    assert "converted with torch, which is not installed here" in done.stderr
    assert "powermean[trainer]" in done.stderr
