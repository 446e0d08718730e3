"""What ranks of two versions read in each other's signs of life, and what becomes of garbled ones."""

import json
import threading
from typing import Any, cast

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainer.failures import TrainingError
from trainer.ranks.watch import Standing, Watch, read, written
from trainer.ranks.world import World


def test_ranks_of_the_version_before_read_the_signs_and_are_read() -> None:
    own = Standing(3, 2, collectives=5, doing="update", line="trainer/loop.py:1 in run")
    _, calls, passes = json.loads(written(7, own))  # as they do
    assert (calls, passes) == (3, 2)
    assert read(b"[7, 3, 2]") == Standing(3, 2)
    found = read(written(7, own).encode())
    assert (found, str(found)) == (own, str(own))
    assert written(7, own) != written(8, own), "each beat has a new sign"
    assert read(b"") == Standing()


class Garbled:
    """A store whose signs nobody can read."""

    def set(self, key: str, value: str) -> None: ...

    def compare_set(self, key: str, expected: str, wanted: str) -> None: ...

    def check(self, keys: list[str]) -> bool:
        return False

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [b"garbled"] * len(keys)


def test_a_sign_that_cannot_be_read_is_no_lost_rank() -> None:
    ended, why = threading.Event(), list[TrainingError]()

    def end(error: TrainingError) -> None:
        why.append(error)
        ended.set()

    store: Any = Garbled()
    watch = Watch(World(0, 2), cast(TCPStore, store), end, beat_s=0.01, lost_beats=50)
    watch.start()
    assert ended.wait(10)
    watch.stop()
    assert [(one.error.code, one.retryable) for one in why] == [("watch_failed", True)]
    assert "JSONDecodeError" in why[0].error.message
