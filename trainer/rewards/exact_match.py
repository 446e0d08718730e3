"""Does the text taken from the completion equal the reference answer?"""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from trainer.rewards.grading import Grade, Item

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-\u2212])?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


class ExactMatchGrader:
    """Compares one part of the completion with the answer, both without surrounding white space."""

    def __init__(self, extract: str, ignore_case: bool) -> None:
        self._extract = _EXTRACTIONS[extract]
        self._canonical = canonical_number if extract == "last_number" else str.strip
        self._ignore_case = ignore_case

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """See Grader."""
        return [Grade(float(self._matches(completion, answer))) for completion, answer in items]

    def _matches(self, completion: str, answer: str) -> bool:
        found = self._extract(completion)
        return found is not None and same_text(
            self._canonical(found), self._canonical(answer), self._ignore_case
        )


def same_text(first: str, second: str, ignore_case: bool) -> bool:
    """Equality of two texts."""
    return first.casefold() == second.casefold() if ignore_case else first == second


def canonical_number(text: str) -> str:
    """One way to write each number, so that 1,200.50 equals 1200.5; any other text as it is, stripped."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text.replace(",", "").replace("\u2212", "-"))
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _last_line(text: str) -> str:
    """The last line that is not blank."""
    return text.rstrip().rsplit("\n", 1)[-1]


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


_EXTRACTIONS: Mapping[str, Callable[[str], str | None]] = {
    "all": str,
    "first_line": _first_line,
    "last_line": _last_line,
    "last_number": _last_number,
}
