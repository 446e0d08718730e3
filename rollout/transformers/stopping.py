"""When a completion is done: end-of-text tokens and stop strings."""

from collections.abc import Sequence
from typing import Protocol

# A tokenizer may drop a space at the start of what it decodes; so much context keeps that out of the way.
_SLACK = 8


class Decoder(Protocol):
    """What is used of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Stopping:
    """Tells whether the newest token completes a completion."""

    def __init__(self, decoder: Decoder, end_tokens: frozenset[int], stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._stop = tuple(stop)
        # No token but a special one has less than a byte of text.
        self._window = max((len(text.encode()) for text in stop), default=0) + _SLACK

    def stops(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends the text or completes a stop string. Ask after each token."""
        if token_ids[-1] in self._end_tokens:
            return True
        if not self._stop:
            return False
        text = self._decoder.decode(token_ids[-self._window :], skip_special_tokens=False)
        return any(stop in text for stop in self._stop)
