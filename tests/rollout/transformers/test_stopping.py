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
    """Number of tokens after which the completion stops, asked about after each one."""
    stopping = Stopping(Bytes(), frozenset(), stop)
    tokens = text.encode()
    sizes = (stopping.end(tokens[:size], size - 1) for size in range(1, len(tokens) + 1))
    return next((size for size in sizes if size is not None), None)


def _stops_in(text: str, stop: Sequence[str], stride: int) -> int | None:
    """The same, asked about after so many tokens."""
    stopping = Stopping(Bytes(), frozenset(), stop)
    tokens = text.encode()
    sizes = (stopping.end(tokens[: seen + stride], seen) for seen in range(0, len(tokens), stride))
    return next((size for size in sizes if size is not None), None)


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
    for stride in (2, 3, 16, 1000):
        assert _stops_in(text, stop, stride) == size


def test_end_tokens_stop_without_any_text() -> None:
    stopping = Stopping(Bytes(), frozenset({7, 9}), ())
    assert [stopping.end([3, token], 1) for token in (7, 8, 9)] == [2, None, 2]
    assert stopping.end([7, 8], 1) is None
    assert stopping.end([3, 4, 9, 7, 5], 0) == 3


def test_what_comes_first_ends_a_completion() -> None:
    stopping = Stopping(Bytes(), frozenset({0}), ("ab",))
    assert stopping.end(b"xxab\0", 0) == 4
    assert stopping.end(b"xx\0ab", 0) == 3
    assert stopping.end(b"xa\0b", 0) == 3


def test_a_text_without_a_stop_string_is_decoded_once() -> None:
    class Counting(Bytes):
        calls = 0

        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            self.calls += 1
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    tokenizer = Counting()
    assert Stopping(tokenizer, frozenset(), ("END",)).end(b"one two three", 0) is None
    assert tokenizer.calls == 1
