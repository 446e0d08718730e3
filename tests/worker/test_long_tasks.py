"""Long work beside Celery's threads: each thing once at a time, few at once, and a failure ends no thread."""

import threading
from collections.abc import Callable, Iterator

import pytest

from worker.long_tasks import LongTasks

WAIT_S = 10.0


class Work:
    """Says what it began, and waits to be let go."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.changed = threading.Condition()
        self.go_on = threading.Event()

    def __call__(self, subject: str) -> None:
        with self.changed:
            self.began.append(subject)
            self.changed.notify_all()
        assert self.go_on.wait(WAIT_S)
        if subject == "bad":
            raise ValueError(subject)

    def until(self, true: Callable[[list[str]], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: true(self.began), WAIT_S), self.began


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.go_on.set()


def test_few_run_at_once_and_the_others_in_their_order(work: Work) -> None:
    tasks = LongTasks(2)
    for subject in ("a", "b", "c", "d"):
        tasks.put(subject, work)
    work.until(lambda began: len(began) == 2)
    assert sorted(work.began) == ["a", "b"]
    work.go_on.set()
    work.until(lambda began: len(began) == 4)
    assert sorted(work.began[2:]) == ["c", "d"]


def test_what_is_asked_for_again_meanwhile_is_done_once(work: Work) -> None:
    tasks = LongTasks(1)
    for subject in ("a", "b", "a", "b", "last"):
        tasks.put(subject, work)
    work.until(lambda began: began == ["a"])
    tasks.put("a", work)
    work.go_on.set()
    work.until(lambda began: began == ["a", "b", "last"])


def test_what_has_been_done_can_be_asked_for_again_also_after_a_failure(work: Work) -> None:
    tasks = LongTasks(1)
    work.go_on.set()
    tasks.put("bad", work)
    tasks.put("next", work)
    work.until(lambda began: began == ["bad", "next"])
    tasks.put("bad", work)
    work.until(lambda began: began == ["bad", "next", "bad"])
