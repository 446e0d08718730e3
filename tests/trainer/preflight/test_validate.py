"""What only a node can check comes back as errors with the field's path and a remedy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from powermean import engine_selection as choice
from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.job import JobSpec
from tests.support.fake_gpu import fake_gpu
from tests.support.tiny_model import tiny_spec
from trainer.preflight import validate as module
from trainer.preflight.validate import validate
from worker.settings import NodeSettings


@pytest.fixture
def settings(tmp_path: Path, model_root: Path) -> NodeSettings:
    return NodeSettings(
        artefacts_url=f"file://{tmp_path}/store", data_dir=tmp_path / "node", model_roots=(model_root,)
    )


def errors(
    settings: NodeSettings, rows: list[dict[str, str]] | None = None, **spec: object
) -> list[JobError]:
    dataset = None
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        dataset = ArtefactStore(settings.artefacts_url).put_bytes("datasets/d", "rows.jsonl", text.encode())
        spec = {"data": {"kind": "jsonl", "dataset": "ds-1", "held_out": 0.5}} | spec
    task = ValidationTask(
        job_id="job-a", spec=JobSpec.model_validate(tiny_spec("tiny") | spec), dataset=dataset
    )
    return list(validate(task, settings).errors)


ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]


def test_a_good_job_has_no_errors(settings: NodeSettings) -> None:
    assert errors(settings) == []
    assert errors(settings, ROWS) == []
    chat = {"kind": "jsonl", "dataset": "ds-1", "chat": True, "held_out": 0.5}
    assert errors(settings, ROWS, data=chat) == []


def test_all_that_is_wrong_is_said_at_once(settings: NodeSettings) -> None:
    found = errors(
        settings,
        [row if i != 16 else {"question": "1+1="} for i, row in enumerate(ROWS)],
        model={"folder": "none"},
        resources={"gpus": 1},
    )
    assert [error.path for error in found][:2] == ["resources.gpus", "model.folder"]
    assert "line 17" in found[2].message
    assert "answer" in found[2].message
    assert all(error.remedy for error in found)


def test_the_longest_prompt_is_named(settings: NodeSettings) -> None:
    (error,) = errors(settings, [*ROWS, {"question": "1+" * 40, "answer": "1"}])
    assert error.code == "prompt_too_long"
    assert error.path == "data.prompt"
    assert "80 tokens" in error.message
    assert "64" in error.message


def test_max_new_tokens_beyond_the_context_is_that_fields_error(settings: NodeSettings) -> None:
    (error,) = errors(settings, rollout={"max_new_tokens": 64})
    assert error.path == "rollout.max_new_tokens"
    assert error.remedy == "at most 60 for the longest prompt (4 tokens)"


def test_the_context_may_be_filled_to_the_last_token(settings: NodeSettings) -> None:
    assert errors(settings, rollout={"max_new_tokens": 60}) == []
    assert errors(settings, rollout={"max_new_tokens": 61}) != []


def test_a_store_that_the_final_model_cant_go_to_is_found_before_training(
    settings: NodeSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    there = settings.model_copy(update={"artefacts_url": f"file://{tmp_path}/file"})
    (error,) = errors(there)
    assert error.code == "artefact_store_unavailable"


def test_an_empty_prompt_has_nothing_to_start_from(settings: NodeSettings) -> None:
    (error,) = errors(settings, [*ROWS, {"question": "", "answer": "1"}])
    assert error.code == "prompt_empty"


def test_a_dataset_that_is_gone_or_too_small_is_named(settings: NodeSettings) -> None:
    (error,) = errors(settings, data={"kind": "jsonl", "dataset": "ds-1"})
    assert error.path == "data.dataset"
    (error,) = errors(settings, ROWS[:1])
    assert error.code == "too_few_problems"


def test_a_split_job_needs_a_second_gpu(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch)
    assert errors(settings, resources={"gpus": 1}) == []
    (error,) = errors(settings, resources={"gpus": 1, "placement": "split"})
    assert (error.code, error.path) == ("too_few_gpus", "resources.placement")


def test_a_gpu_job_needs_a_compiler_on_its_node(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(monkeypatch)
    monkeypatch.setenv("PATH", str(settings.data_dir))
    (error,) = errors(settings, resources={"gpus": 1})
    assert (error.code, error.path) == ("compiler_missing", "resources.gpus")
    assert errors(settings) == []


def test_vllm_where_it_is_missing_or_does_not_serve_the_model(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tiny_spec("tiny")["rollout"] | {"engine": "vllm"}  # type: ignore[operator]
    for installed, code in ((False, "vllm_missing"), (True, "vllm_model")):
        monkeypatch.setattr(choice, "vllm_installed", lambda installed=installed: installed)
        (error,) = errors(settings, rollout=asked)
        assert (error.code, error.path) == (code, "rollout.engine")
        assert error.remedy is not None
        assert "rollout.engine" in error.remedy


def test_a_way_of_publishing_that_only_vllm_has_needs_vllm(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tiny_spec("tiny")["rollout"] | {"publish": "gloo"}  # type: ignore[operator]
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    (error,) = errors(settings, rollout=asked)
    assert (error.code, error.path) == ("vllm_missing", "rollout.publish")
    assert error.remedy is not None
    assert "shm or store" in error.remedy


def test_what_exceeds_vllms_cache_is_that_limits_error(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "vllm_objection", lambda *_, **__: None)
    monkeypatch.setattr(module, "cpu_cache_tokens", lambda *_: 32)
    asked = tiny_spec("tiny")["rollout"] | {"max_new_tokens": 28}  # type: ignore[operator]
    assert errors(settings, rollout=asked | {"engine": "vllm"}) == []
    asked |= {"max_new_tokens": 29}
    assert errors(settings, rollout=asked) == []  # the tiny model's heads: auto takes transformers
    (error,) = errors(settings, rollout=asked | {"engine": "vllm"})
    assert error.code == "prompt_too_long"
    assert "vLLM's key/value cache of 32" in error.message
    assert error.remedy is not None
    assert "set rollout.engine to transformers" in error.remedy


def test_a_tokenizer_without_a_chat_template(
    settings: NodeSettings, tmp_path: Path, tiny_folder: Path
) -> None:
    plain = tmp_path / "roots" / "plain"
    plain.mkdir(parents=True)
    for path in tiny_folder.iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    there = settings.model_copy(update={"model_roots": (tmp_path / "roots",)})
    data = {"kind": "jsonl", "dataset": "ds-1", "chat": True, "held_out": 0.5}
    (error,) = errors(there, ROWS, model={"folder": "plain"}, data=data)
    assert (error.code, error.path) == ("no_chat_template", "data.chat")


def test_the_program_reads_a_task_and_prints_a_result_without_pytorch(
    tmp_path: Path, model_root: Path
) -> None:
    """The demo waits for it: PyTorch alone would take seconds to import."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    task = ValidationTask(job_id="job-a", spec=JobSpec.model_validate(tiny_spec("tiny")))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.preflight"],
        input=task.model_dump_json(),
        env={
            "PYTHONPATH": str(tmp_path),
            "POWERMEAN_ARTEFACTS_URL": f"file://{tmp_path}/store",
            "POWERMEAN_DATA_DIR": str(tmp_path / "data"),
            "POWERMEAN_MODEL_ROOTS": str(model_root),
        },
        cwd=Path(module.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = ValidationResult.model_validate_json(done.stdout)
    assert result.errors == ()
    assert result.tokens == 4 + 4  # the prompt `a+b=` and max_new_tokens
