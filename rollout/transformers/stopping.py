"""When a completion is done: end-of-text tokens and stop strings."""

from collections.abc import Sequence
from typing import Protocol

# A tokenizer may drop a space at the start of what it decodes; so much context keeps that out of the way.
_SLACK = 8


class Detokenizer(Protocol):
    """What is used of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Stopping:
    """Tells whether a completion ends within its new tokens."""

    def __init__(self, tokenizer: Detokenizer, end_tokens: frozenset[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._stop = tuple(stop)
        # No token but a special one has less than a byte of text.
        self._window = max((len(text.encode()) for text in stop), default=0) + _SLACK

    def end(self, token_ids: Sequence[int], seen: int) -> int | None:
        """How many tokens the completion keeps if it ends within them; None if it goes on.

        It ends with an end token, or with the token that completes a stop string. The first `seen` tokens
        have been checked before.
        """
        ends = (i + 1 for i in range(seen, len(token_ids)) if token_ids[i] in self._end_tokens)
        size = next(ends, None)
        last = len(token_ids) if size is None else size
        if self._has_stop(token_ids[:last], seen):
            sizes = (i for i in range(seen + 1, last + 1) if self._has_stop(token_ids[:i], i - 1))
            return next(sizes, size)
        return size

    def _has_stop(self, token_ids: Sequence[int], seen: int) -> bool:
        """Whether the text has a stop string that goes beyond the first `seen` tokens."""
        if not self._stop:
            return False
        text = self._tokenizer.decode(token_ids[max(seen - self._window, 0) :], skip_special_tokens=False)
        return any(stop in text for stop in self._stop)
