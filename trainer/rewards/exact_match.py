"""Does the text extracted from the completion equal the reference answer?"""

import re
from decimal import Decimal

from powermean.contracts.rewards import ExactMatch

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-\u2212])?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def grade(spec: ExactMatch, completion: str, answer: str) -> float:
    """1 when the extracted text equals the answer, else 0. White space around either does not count."""
    found = extracted(spec, completion)
    if found is None:
        return 0.0
    canonical = canonical_number if spec.extract == "last_number" else str.strip
    first, second = canonical(found), canonical(answer)
    if spec.ignore_case:
        first, second = first.casefold(), second.casefold()
    return float(first == second)


def extracted(spec: ExactMatch, completion: str) -> str | None:
    """The part of the completion that is compared; None when there is none."""
    match spec.extract:
        case "all":
            return completion
        case "first_line":
            return completion.split("\n", 1)[0]
        case "last_line":  # the last one that is not blank
            return completion.rstrip().rsplit("\n", 1)[-1]
        case "last_number":
            return _last_match(_NUMBER, completion)
        case "pattern":
            assert spec.pattern is not None
            return _last_match(re.compile(spec.pattern), completion)


def canonical_number(text: str) -> str:
    """One way to write each number, so that 1,200.50 equals 1200.5; any other text stripped but unchanged."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text.replace(",", "").replace("\u2212", "-"))
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match, or its group 1 if the pattern has groups; None when there is none."""
    found = None
    for match in pattern.finditer(text):
        found = match[1] if pattern.groups else match[0]
    return found
