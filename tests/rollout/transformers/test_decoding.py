"""The sampling loop: what belongs to a completion, which rows go on, and when it gives up."""

from collections.abc import Sequence
from threading import Event

import pytest
import torch
from torch import Tensor

from rollout.engine import CancelledError, EngineError
from rollout.transformers.decoding import Sampled, sample_batch
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import Chosen

END = 0


class Letters:
    """A tokenizer: token 1 is "a"."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(ord("`") + token) for token in token_ids)


class Scripted:
    """Gives each row the tokens of its script. Log-probs tell row and place, and so must the draws."""

    def __init__(self, script: Sequence[str], stride: int, fullness: float) -> None:
        self.stride, self.fullness = stride, fullness
        self.rows = list(range(len(script)))
        self.asked: list[int] = []  # rows of each call
        self._script = script
        self._place = 0

    def advance(self, draws: Tensor) -> Chosen:
        first, self._place = self._place, self._place + draws.shape[1]
        places = range(first, self._place)
        self.asked.append(len(self.rows))
        assert draws.tolist() == [[row + place / 1000 for place in places] for row in self.rows]
        tokens = [
            [" abcdefghijklmnopqrstuvwxyz".index(self._script[r][p]) for p in places] for r in self.rows
        ]
        log_probs = [[-row - place / 1000 for place in places] for row in self.rows]
        return Chosen(torch.tensor(tokens), torch.tensor(log_probs))

    def keep(self, kept: Sequence[int]) -> None:
        self.rows = [self.rows[place] for place in kept]


def _sample(
    script: Sequence[str], stride: int, fullness: float = 1.0, stop: Sequence[str] = ()
) -> tuple[list[Sampled], Scripted]:
    decoder = Scripted(script, stride, fullness)
    draws = torch.arange(len(script))[:, None] + torch.arange(len(script[0])) / 1000
    stopping = Stopping(Letters(), frozenset({END}), stop)
    return sample_batch(decoder, draws.double().round(decimals=3), stopping, Event()), decoder


@pytest.mark.parametrize("fullness", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 16])
def test_completions_do_not_depend_on_stride_and_compaction(stride: int, fullness: float) -> None:
    script = ["abcd efgh", "abxyzuvwx", "qrstuvwij", " abcdefgh", "abcdefgh ", "xabxyabxy"]
    results, _ = _sample(script, stride, fullness, stop=("xy", "ij"))
    sizes = [5, 4, 9, 1, 9, 5]
    assert [len(result.token_ids) for result in results] == sizes
    assert [result.stopped for result in results] == [True, True, True, True, True, True]
    for row, (result, size) in enumerate(zip(results, sizes, strict=True)):
        assert (
            Letters().decode(result.token_ids, skip_special_tokens=False).replace("`", " ")
            == script[row][:size]
        )
        assert result.log_probs == pytest.approx([-row - place / 1000 for place in range(size)])


def test_a_completion_that_nothing_ends_is_not_stopped() -> None:
    results, _ = _sample(["abc", "ab "], 2)
    assert [(len(one.token_ids), one.stopped) for one in results] == [(3, False), (3, True)]


def test_rows_leave_when_few_enough_go_on() -> None:
    script = ["a aaaaaa", "aaa aaaa", "aaaaa aa", "aaaaaaaa"]
    assert _sample(script, 1, 1.0)[1].asked == [4, 4, 3, 3, 2, 2, 1, 1]
    assert _sample(script, 1, 0.5)[1].asked == [4, 4, 4, 4, 2, 2, 1, 1]
    assert _sample(script, 1, 0.0)[1].asked == [4] * 8


@pytest.mark.parametrize(("stride", "told"), [(1, [1, 0, 1, 0, 0, 1]), (2, [1, 1, 0, 1]), (16, [2, 1])])
def test_it_tells_of_rows_that_end(stride: int, told: list[int]) -> None:
    """The last of them has no end but the limit."""
    script, seen = [" aaaa", "aa aa", "aaaaa"], list[int]()
    draws = (torch.arange(3)[:, None] + torch.arange(5) / 1000).double().round(decimals=3)
    stopping = Stopping(Letters(), frozenset({END}), ())
    sample_batch(Scripted(script, stride, 1.0), draws, stopping, Event(), seen.append)
    assert seen == told


def test_it_ends_with_the_last_row() -> None:
    assert _sample(["a aaaaaa", "aaa aaaa"], 2)[1].asked == [2, 1]


def test_a_cancelled_request_ends_within_a_stride() -> None:
    cancelled = Event()

    class Cancelling(Scripted):
        def advance(self, draws: Tensor) -> Chosen:
            if len(self.asked) == 2:
                cancelled.set()
            return super().advance(draws)

    decoder = Cancelling(["a" * 20], 4, 1.0)
    draws = (torch.arange(20)[None] / 1000).double().round(decimals=3)
    with pytest.raises(CancelledError):
        sample_batch(decoder, draws, Stopping(Letters(), frozenset(), ()), cancelled)
    assert len(decoder.asked) == 3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_an_error_unless_the_row_has_ended(bad: float) -> None:
    class Diverging(Scripted):
        def advance(self, draws: Tensor) -> Chosen:
            chosen = super().advance(draws)
            if len(self.asked) == 2:
                chosen.log_probs[1] = bad
            return chosen

    def sample(script: Sequence[str]) -> list[Sampled]:
        draws = torch.arange(2)[:, None] + torch.arange(3) / 1000
        stopping = Stopping(Letters(), frozenset({END}), ())
        return sample_batch(Diverging(script, 1, 0.0), draws.double().round(decimals=3), stopping, Event())

    assert [len(one.token_ids) for one in sample(["aaa", " aa"])] == [3, 1]
    with pytest.raises(EngineError, match="not finite") as error:
        sample(["aaa", "aaa"])
    assert error.value.code == "not_finite"
