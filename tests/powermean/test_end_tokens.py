"""Three files of a model's folder may name the tokens that end a text."""

import json
from pathlib import Path

import pytest

from powermean.end_tokens import end_tokens

VOCABULARY = {"a": 0, "<end>": 1, "<turn>": 2}


def _folder(path: Path, **files: object) -> Path:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("config", "generation", "found"),
    [
        ({}, None, set()),
        ({"eos_token_id": 1}, None, {1}),
        ({"eos_token_id": [1, 2]}, {}, {1, 2}),
        ({"eos_token_id": 1}, {"eos_token_id": [2, 0]}, {0, 2}),  # the generation config is the newer one
        ({"eos_token_id": 1}, {"eos_token_id": None}, {1}),
        ({"text_config": {"eos_token_id": 2}}, None, {2}),
        ({"text_config": {"hidden_size": 8}, "eos_token_id": 2}, None, {2}),
    ],
)
def test_the_generation_config_stands_for_the_config(
    tmp_path: Path, config: dict[str, object], generation: dict[str, object] | None, found: set[int]
) -> None:
    files = {"config": config} if generation is None else {"config": config, "generation_config": generation}
    assert end_tokens(_folder(tmp_path, **files)) == found


@pytest.mark.parametrize(
    ("settings", "tokenizer", "found"),
    [
        ({"eos_token": "<turn>"}, {"model": {"vocab": VOCABULARY}}, {0, 2}),
        ({"eos_token": {"content": "<turn>"}}, {"added_tokens": [{"id": 7, "content": "<turn>"}]}, {0, 7}),
        ({"eos_token": "<turn>", "added_tokens_decoder": {"9": {"content": "<turn>"}}}, None, {0, 9}),
        ({"eos_token": "a"}, {"model": {"vocab": VOCABULARY}}, {0}),
        ({"eos_token": None}, {"model": {"vocab": VOCABULARY}}, {0}),
        ({"eos_token": "<none>"}, {"model": {"vocab": VOCABULARY}}, {0}),
        ({"eos_token": "<turn>"}, {"model": {"vocab": [["<turn>", -1.0]]}}, {0}),  # in no file as expected
        ({}, None, {0}),
    ],
)
def test_the_tokenizers_end_token_ends_a_text_too(
    tmp_path: Path, settings: dict[str, object], tokenizer: dict[str, object] | None, found: set[int]
) -> None:
    files = {"config": {"eos_token_id": 0}, "tokenizer_config": settings}
    if tokenizer is not None:
        files["tokenizer"] = tokenizer
    assert end_tokens(_folder(tmp_path, **files)) == found


@pytest.mark.parametrize("content", ["", "[]"])
def test_an_unreadable_config(tmp_path: Path, content: str) -> None:
    with pytest.raises(OSError, match="No such file"):
        end_tokens(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError):  # noqa: PT011  (json's errors are ValueErrors as well)
        end_tokens(tmp_path)
