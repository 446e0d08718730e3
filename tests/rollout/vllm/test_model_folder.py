"""What is read from a model's folder, and which publishes fit it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollout.engine import EngineError
from rollout.vllm.model_folder import ModelFolder, read_model_folder, read_shapes, renames

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TIED = ModelFolder("m", 19, frozenset({1}), tied=True, shapes={EMBEDDING: (19, 64), NORM: (64,)})
UNTIED = ModelFolder("m", 19, frozenset({1}), tied=False, shapes={**TIED.shapes, HEAD: (19, 64)})


def _folder(path: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    save_file({NORM: torch.zeros(3)}, path / "model.safetensors")
    return path


def _message(action: Callable[[], object], code: str) -> str:
    with pytest.raises(EngineError) as caught:
        action()
    assert caught.value.code == code
    return str(caught.value)


def test_a_folder_is_read(tmp_path: Path) -> None:
    config = {"vocab_size": 19, "eos_token_id": 1, "tie_word_embeddings": True}
    found = read_model_folder(_folder(tmp_path, config))
    assert (found.vocabulary, found.end_tokens, found.tied) == (19, {1}, True)
    assert found.shapes == {NORM: (3,)}


def test_both_configs_name_end_tokens(tmp_path: Path) -> None:
    config = {"text_config": {"vocab_size": 7, "eos_token_id": 1}}
    found = read_model_folder(_folder(tmp_path, config, {"eos_token_id": [2, 3]}))
    assert (found.vocabulary, found.end_tokens) == (7, {1, 2, 3})


def test_the_tokenizer_names_an_end_token_too(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"vocab_size": 7, "eos_token_id": 1})
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<turn>"}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 5, "content": "<turn>"}]}))
    assert read_model_folder(folder).end_tokens == {1, 5}


@pytest.mark.parametrize("text", ["", "[]", '{"eos_token_id": 1}'])
def test_an_unreadable_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path) in _message(lambda: read_model_folder(tmp_path), "unknown_model")


def test_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for content in (b"", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(content)
        with pytest.raises(ValueError):  # noqa: PT011  (json's errors are ValueErrors as well)
            read_shapes([path])


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in "ab":
        save_file({NORM: torch.zeros(3)}, tmp_path / name)
    with pytest.raises(ValueError, match="two files"):
        read_shapes([tmp_path / "a", tmp_path / "b"])


def test_a_whole_publish_fits() -> None:
    assert renames(TIED, TIED.shapes) == {}
    assert renames(UNTIED, UNTIED.shapes) == {}


def test_a_tied_weight_may_come_under_its_other_name() -> None:
    assert renames(TIED, {HEAD: (19, 64), NORM: (64,)}) == {HEAD: EMBEDDING}


@pytest.mark.parametrize(
    ("model", "published", "told"),
    [
        (TIED, {EMBEDDING: (19, 64)}, f"{NORM} is missing"),
        (TIED, {**TIED.shapes, HEAD: (19, 64)}, "two names"),
        (TIED, {**TIED.shapes, "other": (1,)}, "no weight other"),
        (TIED, {EMBEDDING: (19, 32), NORM: (64,)}, "shape [19, 32]"),
        (TIED, {HEAD: (19, 32), NORM: (64,)}, "shape [19, 32]"),
        (UNTIED, TIED.shapes, f"{HEAD} is missing"),
    ],
)
def test_what_does_not_fit_is_named(
    model: ModelFolder, published: dict[str, tuple[int, ...]], told: str
) -> None:
    assert told in _message(lambda: renames(model, published), "weights_mismatch")
