"""Which tokens end a text, by a model's folder. Both engines stop there, and vLLM's own rule is the same."""

import json
from pathlib import Path
from typing import Any


def end_tokens(folder: Path) -> frozenset[int]:
    """What the generation config names, else the config; and what the tokenizer names beside it.

    Base models' configs often end at the end of a document, and their chat tokenizers at the end of a turn.
    Raises OSError without a config.json, ValueError for a file that is no JSON object.
    """
    config = _read(folder / "config.json")
    text = config.get("text_config") or config
    named = _read(folder / "generation_config.json", optional=True).get("eos_token_id")
    if named is None:
        named = text.get("eos_token_id", config.get("eos_token_id"))
    return _ids(named) | _ids(_of_tokenizer(folder))


def _of_tokenizer(folder: Path) -> int | None:
    settings = _read(folder / "tokenizer_config.json", optional=True)
    token = settings.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        return None
    for number, added in (settings.get("added_tokens_decoder") or {}).items():
        if added.get("content") == token:
            return int(number)
    tokenizer = _read(folder / "tokenizer.json", optional=True)
    for added in tokenizer.get("added_tokens") or ():
        if added.get("content") == token:
            return int(added["id"])
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    return found if isinstance(found, int) else None


def _ids(named: Any) -> frozenset[int]:
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)


def _read(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content
