"""Takes the values of secrets out of what programs print and report.

A value is found as it is, quoted for a URL, for JSON or by repr, and in base64 at any offset, also with white
space in it, as log handlers wrap long lines. Of a value of several lines each line is looked for, too.
"""

import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from urllib.parse import quote, quote_plus

from powermean.contracts.secrets import SHORTEST, SecretValues

NAMES = "POWERMEAN_SECRET_NAMES"  # in the environment of a program with secrets: their names, by commas
MASK = b"***"
_SPACE = re.compile(rb"\s+")


def with_secrets(environment: dict[str, str], secrets: SecretValues) -> dict[str, str]:
    """The environment of a program that gets these secrets."""
    return environment | secrets | {NAMES: ",".join(secrets)} if secrets else environment


def without_job_secrets() -> dict[str, str]:
    """This program's environment, for a program of its own that needs no secrets."""
    return {name: value for name, value in os.environ.items() if name not in {NAMES, *_names()}}


def own_secrets() -> SecretValues:
    """The secrets that this program was given."""
    return {name: os.environ[name] for name in _names() if name in os.environ}


def own_redactor() -> "Redactor":
    """Takes out the secrets that this program was given."""
    return Redactor(own_secrets().values())


def _names() -> list[str]:
    return [name for name in os.environ.get(NAMES, "").split(",") if name]


class Redactor:
    """Redacts a stream: feed it chunks as they come, and take the `rest` at its end.

    What may be the beginning of a value is held back until the next chunk decides.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._forms = sorted(set().union(*map(_forms, values)), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What is certain by now, redacted."""
        if not self._forms:
            return chunk
        text = _Text(self._held + chunk)
        return self._clean(text, self._begun(text.dense))

    def rest(self) -> bytes:
        """What is still held back, redacted."""
        text = _Text(self._held)
        return self._clean(text, len(text.dense)) if self._forms else b""

    def text(self, whole: str) -> str:
        """A whole text, redacted."""
        if not self._forms:
            return whole
        once = Redactor(())
        once._forms, once._pattern = self._forms, self._pattern
        return (once.feed(whole.encode(errors="surrogatepass")) + once.rest()).decode(errors="surrogatepass")

    def _clean(self, text: "_Text", certain: int) -> bytes:
        """The text without the values that begin before `certain`; what follows is held back."""
        clean, done = [], 0
        for found in self._pattern.finditer(text.dense):
            if found.start() >= certain:
                break
            clean += [text.between(done, found.start()), MASK]
            done = found.end()
        kept = max(done, certain)
        self._held = text.from_(kept)
        return b"".join([*clean, text.between(done, kept)])

    def _begun(self, dense: bytes) -> int:
        """Where a value begins that may go on in the next chunk; the end if nowhere."""
        first = len(dense)
        for form in self._forms:
            at = dense.find(form[:1], max(0, len(dense) - len(form) + 1))
            while 0 <= at < first:
                if form.startswith(dense[at:]):
                    first = at
                at = dense.find(form[:1], at + 1)
        return first


class _Text:
    """A text, and the same text without white space."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._words, self._dense_words = [0], [0]  # where words begin, in the text and without white space
        removed = 0
        for space in _SPACE.finditer(text):
            removed += space.end() - space.start()
            self._words.append(space.end())
            self._dense_words.append(space.end() - removed)
        self.dense = _SPACE.sub(b"", text)

    def between(self, start: int, end: int) -> bytes:
        """The text between two places in the dense one, with the white space around it."""
        return self._text[self._place(start - 1) + 1 if start else 0 : self._place(end)]

    def from_(self, start: int) -> bytes:
        """The text from a place in the dense one on."""
        return self._text[self._place(start) :]

    def _place(self, dense: int) -> int:
        if dense == len(self.dense):
            return len(self._text)
        word = bisect_right(self._dense_words, dense) - 1
        return self._words[word] + dense - self._dense_words[word]


def _forms(value: str) -> set[bytes]:
    """All that is looked for of a value, without white space."""
    lines = [line for line in value.splitlines() if len(line.strip()) >= SHORTEST]
    spellings: tuple[Callable[[str], str], ...] = (
        str,
        quote,
        partial(quote, safe=""),
        quote_plus,
        _in_json,
        _in_repr,
    )
    spelled = {spell(one).encode() for one in (value, *lines) for spell in spellings}
    encoded = {form for one in (value, *lines) for form in _base64(one.encode())}
    return {dense for form in spelled | encoded if len(dense := _SPACE.sub(b"", form)) >= SHORTEST}


def _in_json(value: str) -> str:
    return json.dumps(value)[1:-1]


def _in_repr(value: str) -> str:
    return repr(value)[1:-1]


def _base64(value: bytes) -> Iterable[bytes]:
    """What base64 makes of the value after 0, 1 or 2 other bytes: the characters that it alone decides."""
    for before in range(3):
        for encode in (b64encode, urlsafe_b64encode):
            whole = (before + len(value)) * 8 // 6  # characters that hold no bit of what follows
            yield encode(bytes(before) + value)[-(-before * 8 // 6) : whole]
