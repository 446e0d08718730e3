"""What only a node can check comes back as errors with the field's path and a remedy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from powermean import engine_selection as choice
from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.job import JobSpec
from tests.support.fake_gpu import fake_gpu
from tests.support.tiny_model import tiny_spec
from trainer.failures import TrainingError
from trainer.preflight import dataset
from trainer.preflight import validate as module
from trainer.preflight.validate import validate
from worker.settings import NodeSettings


@pytest.fixture
def settings(tmp_path: Path, model_root: Path) -> NodeSettings:
    url = f"file://{tmp_path}/store"
    ArtefactStore(url).make()  # as the server does
    return NodeSettings(artefacts_url=url, data_dir=tmp_path / "node", model_roots=(model_root,))


def errors(
    settings: NodeSettings, rows: list[dict[str, str]] | None = None, **spec: object
) -> list[JobError]:
    stored = None
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        stored = ArtefactStore(settings.artefacts_url).put_bytes("datasets/d", "rows.jsonl", text.encode())
        spec = {"data": {"kind": "jsonl", "dataset": "ds-1", "held_out": 0.5}} | spec
    task = ValidationTask(
        job_id="job-a", spec=JobSpec.model_validate(tiny_spec("tiny") | spec), dataset=stored
    )
    return list(validate(task, settings).errors)


ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]


def test_a_good_job_has_no_errors(settings: NodeSettings) -> None:
    assert errors(settings) == []
    assert errors(settings, ROWS) == []
    chat = {"kind": "jsonl", "dataset": "ds-1", "chat": True, "held_out": 0.5}
    assert errors(settings, ROWS, data=chat) == []


def test_a_micro_batch_holds_the_longest_trajectory(settings: NodeSettings) -> None:
    """Four tokens of a prompt, four new ones."""

    def found(tokens: int) -> list[tuple[str, str | None]]:
        training = {"steps": 4, "prompts_per_step": 16, "micro_batch_tokens": tokens}
        return [(error.code, error.path) for error in errors(settings, training=training)]

    assert found(8) == []
    assert found(7) == [("budget_too_small", "training.micro_batch_tokens")]


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


def test_weights_that_do_not_fit_the_config_are_found(settings: NodeSettings, model_root: Path) -> None:
    root = settings.data_dir / "roots"
    config = shutil.copytree(model_root / "tiny", root / "tiny") / "config.json"
    settings = settings.model_copy(update={"model_roots": (root,)})
    assert errors(settings, model={"folder": "tiny", "lora": {}}) == []
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    (error,) = errors(settings, model={"folder": "tiny", "lora": {}})  # its adapter is not tried
    assert (error.code, error.path) == ("model_mismatch", "model")
    assert "instead of" in error.message


def test_the_longest_prompt_is_named(settings: NodeSettings) -> None:
    long = [{"question": "1+" * 40, "answer": "1"}, {"question": "1+" * 31, "answer": "1"}]
    (error,) = errors(settings, [*ROWS, long[1], *ROWS, *long])
    assert error.code == "prompt_too_long"
    assert error.path == "data.prompt"
    assert "(line 130) has 80 tokens" in error.message
    assert "64" in error.message
    assert "so do 2 others (e.g. line 65)" in error.message


def test_every_row_is_measured_and_not_only_those_of_the_first_steps(settings: NodeSettings) -> None:
    rows = [*ROWS * 20, {"question": "1+" * 40, "answer": "1"}, {"question": "", "answer": "1"}]
    training = tiny_spec("tiny")["training"] | {"prompts_per_step": 2}  # type: ignore[operator]
    (error,) = errors(settings, rows, training=training)
    assert (error.code, "line 1281" in error.message) == ("prompt_too_long", True)
    (error,) = errors(settings, [*rows[:-2], rows[-1]], training=training)
    assert (error.code, "line 1281" in error.message) == ("prompt_empty", True)


def with_tokenizer(settings: NodeSettings, tiny_folder: Path, change: object) -> NodeSettings:
    """A model root whose `tiny` has another tokenizer."""
    folder = settings.data_dir / "roots" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)  # type: ignore[operator]
    return settings.model_copy(update={"model_roots": (folder.parent,)})


def test_truncation_and_padding_saved_with_the_tokenizer_do_not_count(
    settings: NodeSettings, tiny_folder: Path
) -> None:
    def truncate(folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding(length=128, pad_id=0, pad_token="<pad>")
        tokenizer.save(str(folder / "tokenizer.json"))

    there = with_tokenizer(settings, tiny_folder, truncate)
    assert errors(there, ROWS) == []
    (error,) = errors(there, [*ROWS, {"question": "1+" * 40, "answer": "1"}])
    assert "80 tokens" in error.message


def test_a_token_that_the_model_lacks(settings: NodeSettings, tiny_folder: Path) -> None:
    def add(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
        tokenizer.chat_template = "<user>{% for m in messages %}{{ m['content'] }}{% endfor %}"
        tokenizer.save_pretrained(folder)

    there = with_tokenizer(settings, tiny_folder, add)
    data = {"kind": "jsonl", "dataset": "ds-1", "chat": True, "held_out": 0.5}
    (error,) = errors(there, ROWS, data=data)
    assert (error.code, error.path) == ("unknown_tokens", "data.chat")
    assert "token 19" in error.message
    assert errors(there, ROWS) == []


def test_a_chat_template_that_raises(settings: NodeSettings, tiny_folder: Path) -> None:
    def refuse(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")

    there = with_tokenizer(settings, tiny_folder, refuse)
    data = {"kind": "jsonl", "dataset": "ds-1", "chat": True, "held_out": 0.5}
    (error,) = errors(there, ROWS, data=data)
    assert (error.code, error.path) == ("chat_template_failed", "data.chat")
    assert "line 1: TemplateError: no" in error.message


@pytest.mark.parametrize("answer", ["0+1 is <<0+1=1>>.\n#### 1", "3/4", "50%", "$18", "5.", "+5", "x=5"])
def test_answers_that_no_completion_can_match_are_refused(settings: NodeSettings, answer: str) -> None:
    reward = {"kind": "exact_match", "extract": "last_number"}
    rows = [*ROWS, *({"question": f"9+{i}=", "answer": answer} for i in range(6))]
    (error,) = errors(settings, rows, reward=reward)
    assert (error.code, error.path) == ("answers_unmatched", "data.answer_field")
    assert "6 lines (65, 66, 67, 68, 69, 70), 9% of the rows" in error.message
    assert errors(settings, rows, reward={"kind": "exact_match", "extract": "all"}) == []
    assert errors(settings, [*ROWS, rows[-1]], reward=reward) == []  # few are left out of the run


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_answer_that_a_blank_completion_matches_is_refused(settings: NodeSettings, blank: str) -> None:
    (error,) = errors(settings, [*ROWS, {"question": "1+1=", "answer": blank}])
    assert (error.code, error.path) == ("empty_answers", "data.answer_field")
    assert "line 65" in error.message


def test_max_new_tokens_beyond_the_context_is_that_fields_error(settings: NodeSettings) -> None:
    (error,) = errors(settings, rollout={"max_new_tokens": 64})
    assert error.path == "rollout.max_new_tokens"
    assert error.remedy == "at most 60 for the longest prompt (4 tokens)"


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("size", "config", "why"),
    [
        (3, {}, "has 4 attention heads, which 3 GPUs"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, "has 6 key/value heads, which 4 GPUs"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 2}, None),  # each on two of them
        (2, {}, None),
    ],
)
def test_the_gpus_of_an_engine_must_divide_the_models_heads(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    config: Any,
    why: str | None,
) -> None:
    monkeypatch.setattr(module, "vllm_objection", lambda *_, **__: None)
    known = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(known | config))
    rollout = {"gpus_per_replica": size, "engine": "vllm"}
    spec = JobSpec.model_validate(tiny_spec("tiny", rollout=rollout, resources={"gpus": 8}))
    if why is None:
        return module.check_engine(spec, tmp_path)
    with pytest.raises(TrainingError, match=why) as caught:
        module.check_engine(spec, tmp_path)
    assert (caught.value.code, caught.value.path) == ("undivided_heads", "rollout.gpus_per_replica")
    return None


def test_an_engine_of_several_gpus_must_be_vllm(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "vllm_installed", lambda: False)
    spec = JobSpec.model_validate(tiny_spec("tiny", rollout={"gpus_per_replica": 2}, resources={"gpus": 2}))
    with pytest.raises(TrainingError, match="an engine of 2 GPUs must be vLLM") as caught:
        module.check_engine(spec, tiny_folder)
    assert (caught.value.code, caught.value.path) == ("vllm_missing", "rollout.gpus_per_replica")


def test_what_exceeds_vllms_cache_is_that_limits_error(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "vllm_objection", lambda *_, **__: None)
    monkeypatch.setattr(dataset, "cpu_cache_tokens", lambda *_: 32)
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


@pytest.mark.slow
def test_the_program_reads_a_task_and_prints_a_result(tmp_path: Path, model_root: Path) -> None:
    task = ValidationTask(job_id="job-a", spec=JobSpec.model_validate(tiny_spec("tiny")))
    ArtefactStore(f"file://{tmp_path}/store").make()
    done = subprocess.run(
        [sys.executable, "-m", "trainer.preflight"],
        input=task.model_dump_json(),
        env={
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
