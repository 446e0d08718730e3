"""Procedural arithmetic: `a op b`, from a mix of tasks."""

import operator
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import cycle, islice, product

from powermean.contracts.data import ArithmeticSource
from powermean.contracts.jsonl import render
from trainer.data.problem import Problem, digest, generator, is_held_out, too_few_problems

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
# After this many unsuccessful draws in a row the remaining problems are listed instead.
_PATIENCE = 1000
_CHECKED = 2000  # problems of each side that are measured; there may be millions
_REMEDY = "widen the operands' ranges, or change data.held_out"

_Key = tuple[int, str, int]


class Arithmetic:
    """Problems drawn by the tasks' weights; both sides of the split see the same mix."""

    def __init__(self, spec: ArithmeticSource) -> None:
        self._spec = spec
        self._weights = [task.weight for task in spec.tasks]
        for purpose, held_out in (("to train on", False), ("to evaluate on", True)):
            if next(self._distinct(generator(purpose), held_out), None) is None:
                raise too_few_problems(purpose, _REMEDY)

    def batch(self, step: int, count: int, seed: int, round_number: int = 0) -> list[Problem]:
        """See PromptSource."""
        start, end = round_number * count, (round_number + 1) * count
        problems = list(islice(self._distinct(generator(seed, step), held_out=False), end))
        return list(islice(cycle(problems), start, end))

    def held_out(self, count: int) -> list[Problem]:
        """See PromptSource."""
        return list(islice(self._distinct(generator("held out"), held_out=True), count))

    def to_check(self) -> Iterator[Problem]:
        """See PromptSource. The widest have the operands with most digits."""
        for task in self._spec.tasks:
            for a, b in product((task.low, task.high), repeat=2):
                yield self._problem((a, task.operator, b))
        for held_out in (False, True):
            yield from islice(self._distinct(generator("check"), held_out), _CHECKED)

    def _distinct(self, random_: random.Random, held_out: bool) -> Iterator[Problem]:
        """Every problem of one side once, in a random order that follows the weights."""
        seen: set[_Key] = set()
        vain = 0
        while vain < _PATIENCE:
            task = random_.choices(self._spec.tasks, self._weights)[0]
            key = random_.randint(task.low, task.high), task.operator, random_.randint(task.low, task.high)
            if key in seen or self._is_held_out(key) is not held_out:
                vain += 1
                continue
            vain = 0
            seen.add(key)
            yield self._problem(key)
        left = [key for key in self._sides[held_out] if key not in seen]
        random_.shuffle(left)
        yield from map(self._problem, left)

    @cached_property
    def _sides(self) -> dict[bool, list[_Key]]:
        """All problems, by whether they are held out. At most a few million, listed only if draws fail."""
        sides: dict[bool, dict[_Key, None]] = {False: {}, True: {}}
        for task in self._spec.tasks:
            operands = range(task.low, task.high + 1)
            for key in ((a, task.operator, b) for a in operands for b in operands):
                sides[self._is_held_out(key)][key] = None
        return {side: list(keys) for side, keys in sides.items()}

    def _is_held_out(self, key: _Key) -> bool:
        return is_held_out(digest(_name(key)), self._spec.held_out)

    def _problem(self, key: _Key) -> Problem:
        a, sign, b = key
        prompt = render(self._spec.prompt, {"a": a, "op": sign, "b": b})
        return Problem(id=_name(key), prompt=prompt, answer=str(_OPERATIONS[sign](a, b)))


def _name(key: _Key) -> str:
    return "{} {} {}".format(*key)
