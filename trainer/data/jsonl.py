"""An uploaded dataset: one JSON object per line, read on demand and never held in memory."""

from array import array
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from powermean.contracts.data import JsonlSource
from powermean.contracts.jsonl import JsonlError, Row, as_text, check_line, render_with_spans, template_fields
from trainer.data.problem import Problem, digest, generator, is_held_out, too_few_problems
from trainer.failures import TrainingError

_REMEDY = "upload more rows, or change data.held_out"


class Jsonl:
    """Rows by number; only the lines' offsets stay in memory.

    A row is held out by a hash of its prompt, so equal prompts are on one side. Training goes through the
    rows in passes: each pass has a new random order, cut into whole batches (the rest waits for another
    pass).
    """

    def __init__(self, spec: JsonlSource, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._required = tuple(sorted({*template_fields(spec.prompt), spec.answer_field}))
        self._offsets = array("Q")
        self._training = array("Q")
        held_out: list[tuple[int, int]] = []
        with path.open("rb") as file:
            for number, offset, line in _lines(file):
                self._offsets.append(offset)
                key = digest(self._problem(number, line).prompt)
                if is_held_out(key, spec.held_out):
                    held_out.append((key, number))
                else:
                    self._training.append(number)
        self._held_out = array("Q", (number for _, number in sorted(held_out)))
        self._check_sides()

    def batch(self, step: int, count: int, seed: int, round_number: int = 0) -> list[Problem]:
        """See PromptSource. Later rounds take other batches of the pass, in an order specific to the step."""
        batches_a_pass = max(1, len(self._training) // count)
        number_of_pass, place = divmod(step - 1, batches_a_pass)
        if round_number:
            others = [other for other in range(batches_a_pass) if other != place]
            generator(seed, "rounds", step).shuffle(others)
            place = [place, *others][round_number % batches_a_pass]
        order = _order(len(self._training), seed, number_of_pass)
        wanted = (order[index % len(order)] for index in range(place * count, (place + 1) * count))
        return self._read([self._training[index] for index in wanted])

    def held_out(self, count: int) -> list[Problem]:
        """See PromptSource."""
        return self._read(self._held_out[:count])

    def to_check(self) -> Iterator[Problem]:
        """See PromptSource."""
        with self._path.open("rb") as file:
            for number, _, line in _lines(file):
                yield self._problem(number, line)

    def without(self, lines: Collection[int]) -> "Jsonl":
        """The same rows but these, by line. Raises TrainingError (too_few_problems)."""
        rest = copy(self)
        rest._training = array("Q", (number for number in self._training if number not in lines))
        rest._held_out = array("Q", (number for number in self._held_out if number not in lines))
        rest._check_sides()
        return rest

    def _check_sides(self) -> None:
        for purpose, numbers in (("to train on", self._training), ("to evaluate on", self._held_out)):
            if not numbers:
                raise too_few_problems(purpose, _REMEDY)

    def _read(self, numbers: Sequence[int]) -> list[Problem]:
        problems = []
        with self._path.open("rb") as file:
            for number in numbers:
                file.seek(self._offsets[number - 1])
                problems.append(self._problem(number, file.readline()))
        return problems

    def _problem(self, number: int, line: bytes) -> Problem:
        row = self._row(number, line)
        prompt, fields = render_with_spans(self._spec.prompt, row)
        return Problem(
            id=f"line {number}",
            prompt=prompt,
            answer=as_text(row[self._spec.answer_field]),
            chat=self._spec.chat,
            fields=fields,
            control_tokens=self._spec.control_tokens,
        )

    def _row(self, number: int, line: bytes) -> Row:
        try:
            return check_line(number, line, self._required)
        except JsonlError as error:
            raise TrainingError(
                "bad_dataset",
                str(error),
                path="data.dataset",
                remedy="upload a corrected file, or change data.prompt or data.answer_field",
            ) from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yields (line number from 1 on, offset, line)."""
    offset = 0
    for number, line in enumerate(file, start=1):
        yield number, offset, line
        offset += len(line)


@lru_cache(maxsize=2)
def _order(size: int, seed: int, number_of_pass: int) -> "array[int]":
    order = array("Q", range(size))
    generator(seed, "pass", number_of_pass).shuffle(order)
    return order
