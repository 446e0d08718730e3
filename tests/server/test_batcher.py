"""One thread works through what has gathered."""

import asyncio
from collections.abc import Sequence

import pytest

from server.batcher import Batcher


def test_all_that_wait_are_answered_and_after_the_end_each_goes_alone() -> None:
    sizes: list[int] = []

    def work(items: Sequence[int]) -> list[int | None]:
        sizes.append(len(items))
        return [None if item == 3 else item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher("doubles", work)

    async def asked(*items: int) -> list[int | None]:
        return await asyncio.gather(*map(batcher.ask, items))

    assert asyncio.run(asked(*range(5))) == [0, 2, 4, None, 8]
    assert sum(sizes) == 5
    batcher.close()
    assert asyncio.run(asked(1)) == [None]


def test_what_fails_is_told_to_those_who_wait_and_the_next_are_served() -> None:
    def work(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("not 1")
        return [0] if 2 not in items else []

    batcher: Batcher[int, int] = Batcher("zeros", work)

    async def asked(item: int) -> int | None:
        return await asyncio.wait_for(batcher.ask(item), 10)

    with pytest.raises(ValueError, match="not 1"):
        asyncio.run(asked(1))
    with pytest.raises(RuntimeError, match="0 answers for 1 items"):
        asyncio.run(asked(2))
    assert asyncio.run(asked(3)) == 0
    batcher.close()
