"""Stop strings are found whatever tokens they are cut into."""

from collections.abc import Sequence

import pytest

from rollout.transformers.stopping import Stopping


class Bytes:
    """A tokenizer with one token a byte."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens is False
        return bytes(token_ids).decode("utf-8", errors="replace")


def _stops_at(text: str, *stop: str) -> int | None:
    """Number of tokens after which the completion stops."""
    stopping = Stopping(Bytes(), frozenset(), stop)
    tokens = text.encode()
    return next((size for size in range(1, len(tokens) + 1) if stopping.stops(tokens[:size])), None)


@pytest.mark.parametrize(
    ("text", "stop", "size"),
    [
        ("12\n3", ("\n",), 3),
        ("\n", ("\n",), 1),
        ("one END two", ("END",), 7),
        ("one EN", ("END",), None),
        ("a" * 100 + "END", ("END",), 103),
        ("x\u00e9\u4e16", ("\u4e16",), 6),
        ("\u4e16" * 50 + "\u00e9", ("\u00e9",), 152),
        ("a long stop string, whole", ("a long stop string, whole",), 25),
        ("bab", ("ab", "ba"), 2),
        ("anything", (), None),
    ],
)
def test_it_stops_with_the_token_that_completes_a_stop_string(
    text: str, stop: tuple[str, ...], size: int | None
) -> None:
    assert _stops_at(text, *stop) == size


def test_end_tokens_stop_without_any_text() -> None:
    stopping = Stopping(Bytes(), frozenset({7, 9}), ())
    assert [stopping.stops([3, token]) for token in (7, 8, 9)] == [True, False, True]
    assert not stopping.stops([7, 8])
