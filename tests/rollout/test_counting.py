"""How many completions are finished, in the file that the supervisor reads."""

from pathlib import Path

import pytest

from rollout import counting
from rollout.counting import CompletionCount
from worker.attempt_dir import AttemptDir


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "EVERY_S", 0.0)


def test_calls_in_progress_count_together_and_leave_nothing(tmp_path: Path) -> None:
    count, attempt = CompletionCount(tmp_path / counting.FILE), AttemptDir(tmp_path)
    assert attempt.completions() is None
    with count.of(64) as finished:
        assert attempt.completions() == "0 of 64"
        finished(5)
        with count.of(8) as others:
            others(2)
            assert attempt.completions() == "7 of 72"
        finished(1)
        assert attempt.completions() == "8 of 72"
    assert attempt.completions() is None
    with count.of(4):
        assert attempt.completions() == "0 of 4"


def test_the_file_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "EVERY_S", 60.0)
    with CompletionCount(tmp_path / counting.FILE).of(64) as finished:
        for _ in range(10):
            finished(1)
        assert AttemptDir(tmp_path).completions() == "0 of 64"


def test_a_call_that_fails_is_over(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CompletionCount(tmp_path / counting.FILE).of(64):
        raise ZeroDivisionError
    assert AttemptDir(tmp_path).completions() is None


@pytest.mark.parametrize("path", [None, Path("/nowhere/completions")])
def test_an_engine_goes_on_where_nobody_reads_or_nothing_can_be_written(path: Path | None) -> None:
    with CompletionCount(path).of(64) as finished:
        finished(64)
