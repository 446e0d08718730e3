"""Which tokens end a completion, by a model's folder. Both engines stop at all of them.

Four files may name one, and they often disagree: a base model's config ends at the end of a document, its
chat tokenizer at the end of a turn, and a fine-tuned model's template may write a third token there. A model
that ends in a way that nobody looks for talks to itself up to the limit.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from powermean.model_files import read_json

_SAID = "what-the-assistant-says"
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own tag; it writes nothing


def end_tokens(folder: Path) -> frozenset[int]:
    """What the generation config, the config, the tokenizer and the end of a turn in the chat template name.

    Raises OSError without a config.json, ValueError for a file that is no JSON object.
    """
    (folder / "config.json").stat()
    config = read_json(folder / "config.json")
    settings = read_json(folder / "tokenizer_config.json")
    special = dict(_added(settings, read_json(folder / "tokenizer.json")))
    text = config.get("text_config") or config
    named = [
        read_json(folder / "generation_config.json").get("eos_token_id"),
        text.get("eos_token_id", config.get("eos_token_id")),
        special.get(_content(settings.get("eos_token"))),
        special.get(turn_end(_template(folder, settings), settings, special)),
    ]
    return frozenset().union(*map(_ids, named))


def turn_end(template: str, settings: dict[str, Any], special: dict[str, int]) -> str:
    """The special token that the template writes after an assistant's message; "" if it writes none."""
    turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _SAID}]
    names = {name: _content(value) for name, value in settings.items() if name.endswith("_token")}
    try:
        rendered = _environment().from_string(_GENERATION.sub("", template)).render(messages=turns, **names)
    except Exception:  # noqa: BLE001  a template may raise anything; a chat job is checked with it elsewhere
        return ""
    _, said, rest = rendered.rpartition(_SAID)
    found = [token for token in special if said and token and rest.lstrip().startswith(token)]
    return max(found, key=len, default="")


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _format: "today"
    environment.globals["raise_exception"] = _raise
    return environment


def _raise(message: str) -> None:
    raise ValueError(message)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def _added(settings: dict[str, Any], tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens that were added to the vocabulary, and the one that ends a text, which may be in it."""
    eos = _content(settings.get("eos_token"))
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict) and isinstance(vocabulary.get(eos), int):
        yield eos, vocabulary[eos]
    for added in tokenizer.get("added_tokens") or ():
        yield str(added.get("content")), int(added["id"])
    for number, added in (settings.get("added_tokens_decoder") or {}).items():
        yield str(added.get("content")), int(number)


def _content(token: Any) -> str:
    """A token's text: it may be written as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _ids(named: Any) -> frozenset[int]:
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)
