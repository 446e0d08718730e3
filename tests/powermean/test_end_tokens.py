"""Four files of a model's folder may name the tokens that end a completion."""

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
        ({"eos_token_id": 1}, {"eos_token_id": [2, 0]}, {0, 1, 2}),
        ({"eos_token_id": 1}, {"eos_token_id": None}, {1}),
        ({"text_config": {"eos_token_id": 2}}, None, {2}),
        ({"text_config": {"hidden_size": 8}, "eos_token_id": 2}, None, {2}),
    ],
)
def test_both_configs_name_end_tokens(
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


CHATML = "{% for m in messages %}<s>{{ m.role }}\n{{ m['content'] }}<turn>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (CHATML, {0, 2}),
        (CHATML.replace("<turn>", "{{ eos_token }}"), {0, 1}),
        (
            CHATML.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"),
            {0, 2},
        ),
        (CHATML.replace("<turn>", " <turn_over>"), {0, 3}),  # the longer of two that fit
        (CHATML.replace("<turn>", "\n### Human"), {0}),
        (CHATML.replace("<s>", "{{ raise_exception('no') }}"), {0}),
        ("{% for", {0}),
        ("{{ messages[0].content }}<turn>", {0}),  # what the assistant says is left out
        ([{"name": "tools", "template": ""}, {"name": "default", "template": CHATML}], {0, 2}),
    ],
)
def test_the_chat_template_ends_a_turn(tmp_path: Path, template: object, found: set[int]) -> None:
    tokens = [{"id": number, "content": token} for token, number in (VOCABULARY | {"<turn_over>": 3}).items()]
    eos = "<end>" if "eos_token" in str(template) else None
    files = {"config": {"eos_token_id": 0}, "tokenizer": {"added_tokens": tokens}}
    folder = _folder(tmp_path, **files, tokenizer_config={"chat_template": template, "eos_token": eos})
    assert end_tokens(folder) == found
    if isinstance(template, str):
        _folder(tmp_path, tokenizer_config={"eos_token": eos})
        (folder / "chat_template.jinja").write_text(template)
        assert end_tokens(folder) == found


@pytest.mark.parametrize("content", ["", "[]"])
def test_an_unreadable_config(tmp_path: Path, content: str) -> None:
    with pytest.raises(OSError, match="No such file"):
        end_tokens(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError):  # noqa: PT011  (json's errors are ValueErrors as well)
        end_tokens(tmp_path)
