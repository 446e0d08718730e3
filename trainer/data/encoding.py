"""From prompts to token ids: one way for a check, for the run and for benchmarks.

Three things are kept out of a prompt: what a tokenizer puts behind a finished text (an end token would end
the prompt), truncation and padding that were saved with a tokenizer, and control tokens that a row's text
spells out.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from powermean.contracts.jsonl import Span
from powermean.model_files import read_json
from trainer.data.problem import Problem
from trainer.failures import TrainingError

# Characters that no text contains stand for control tokens while the chat template is filled in.
_STAND_INS = range(0xF0000, 0xFFFFE)
# Settings by which transformers makes another tokenizer of tokenizer.json than the file says.
_CHANGES = ("add_bos_token", "add_eos_token", "added_tokens_decoder", "extra_special_tokens")


class Encode(Protocol):
    """Token ids of texts, without what a tokenizer adds to a text.

    `as_text`: what looks like a special token is ordinary text.
    """

    def __call__(self, texts: Sequence[str], *, as_text: bool = False) -> list[list[int]]: ...


@dataclass(frozen=True)
class PromptEncoder:
    """Token ids of prompts. `prefix` goes before a plain prompt; a chat template brings its own."""

    encode: Encode
    prefix: tuple[int, ...]
    control_tokens: tuple[str, ...]
    fill_template: Callable[[str], str] | None = None  # a user's message to the prompt's text

    def __call__(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        """Raises TrainingError (no_chat_template, chat_template_failed)."""
        texts = [self._text(problem, problem.prompt) for problem in problems]
        found = self.encode(texts)
        for place, problem in enumerate(problems):
            if spans := self.spelled_out(problem):
                found[place] = list(self._in_parts(problem, spans))
        return [
            tuple(ids) if problem.chat else (*self.prefix, *ids)
            for problem, ids in zip(problems, found, strict=True)
        ]

    def spelled_out(self, problem: Problem) -> list[Span]:
        """Where a row's own text has a control token that must not become one."""
        if problem.control_tokens or not self.control_tokens:
            return []
        return [
            found.span()
            for found in self._any_control_token.finditer(problem.prompt)
            if any(start < found.end() and found.start() < end for start, end in problem.fields)
        ]

    @cached_property
    def _any_control_token(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True))))

    def _text(self, problem: Problem, prompt: str) -> str:
        if not problem.chat:
            return prompt
        if self.fill_template is None:
            raise TrainingError(
                "no_chat_template",
                "the model's tokenizer has no chat template",
                path="data.chat",
                remedy="set data.chat to false, or use a model that was trained to chat",
            )
        try:
            return self.fill_template(prompt)
        except Exception as error:  # a template may raise anything; jinja's errors have no common base
            raise TrainingError(
                "chat_template_failed",
                f"the model's chat template fails on the prompt of {problem.id}: "
                f"{type(error).__name__}: {error}"[:500],
                path="data.chat",
                remedy="set data.chat to false, or correct chat_template in the model's folder",
            ) from error

    def _in_parts(self, problem: Problem, spans: Sequence[Span]) -> Iterator[int]:
        """Ids of a prompt whose spelled-out control tokens are read as ordinary text."""
        free = (chr(code) for code in _STAND_INS if chr(code) not in problem.prompt)
        meant = {next(free): problem.prompt[start:end] for start, end in spans}
        edges = [0, *(edge for span in spans for edge in span), len(problem.prompt)]
        between = [problem.prompt[start:end] for start, end in list(pairwise(edges))[::2]]
        marked = "".join(part + mark for part, mark in zip(between, [*meant, ""], strict=True))
        for part in re.split(f"([{''.join(meant)}])", self._text(problem, marked)):
            if part:
                yield from self.encode([meant.get(part, part)], as_text=part in meant)[0]


def of_file(folder: Path) -> PromptEncoder | None:
    """For plain prompts, without PyTorch; None where transformers may read the files another way."""
    file = folder / "tokenizer.json"
    settings = read_json(folder / "tokenizer_config.json")
    generic = settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    changed = any(name in settings for name in _CHANGES)
    llama = (
        read_json(folder / "config.json").get("model_type") == "llama"
    )  # others may have a class of their own
    if not (file.is_file() and generic and llama) or changed:
        return None
    return of_backend(Tokenizer.from_file(str(file)))


def of_backend(tokenizer: Tokenizer, fill_template: Callable[[str], str] | None = None) -> PromptEncoder:
    """The encoder of a tokenizer of the tokenizers library."""

    def copied(*, as_text: bool) -> Tokenizer:
        one = Tokenizer.from_str(tokenizer.to_str())  # the caller may set up its own as it likes
        one.no_truncation()
        one.no_padding()
        one.encode_special_tokens = as_text
        return one

    special, literal = copied(as_text=False), cache(lambda: copied(as_text=True))

    def encode(texts: Sequence[str], *, as_text: bool = False) -> list[list[int]]:
        chosen = literal() if as_text else special
        return [list(found.ids) for found in chosen.encode_batch(list(texts), add_special_tokens=False)]

    added = special.get_added_tokens_decoder().values()
    return PromptEncoder(
        encode,
        prefix=added_before(list(special.encode("0").ids), encode(["0"])[0]),
        control_tokens=tuple(token.content for token in added if token.special),
        fill_template=fill_template,
    )


def of_python(tokenizer: Any, fill_template: Callable[[str], str] | None = None) -> PromptEncoder:
    """The encoder of a transformers tokenizer that is not from the tokenizers library."""

    def encode(texts: Sequence[str], *, as_text: bool = False) -> list[list[int]]:
        return [
            list(tokenizer(text, add_special_tokens=False, split_special_tokens=as_text).input_ids)
            for text in texts
        ]

    return PromptEncoder(
        encode,
        prefix=added_before(list(tokenizer("0").input_ids), encode(["0"])[0]),
        control_tokens=tuple(tokenizer.all_special_tokens),
        fill_template=fill_template,
    )


def added_before(whole: Sequence[int], bare: Sequence[int]) -> tuple[int, ...]:
    """The tokens of `whole` before `bare`: what a tokenizer puts before a text, not what it puts behind."""
    for start in range(len(whole) - len(bare) + 1):
        if list(whole[start : start + len(bare)]) == list(bare):
            return tuple(whole[:start])
    return ()
