"""Is the completion's final answer mathematically equal to the reference answer?

Reading LaTeX is math-verify's; which part is the answer and what counts as equal is decided here, as its own
verdicts can't be rewarded: it rounds, joins boxes, reads half of an expression and takes words for products.
`python -m benchmarks.grading` counts wrong verdicts over a table of pairs.
"""

import re
from collections.abc import Iterator

from powermean.contracts.rewards import MathVerify
from trainer.rewards.final_answer import final_answers
from trainer.rewards.math_values import Value, equal, read

_CHOICE = re.compile(r"\(?\s*(?:\\(?:text|math)(?:bf|rm|it)?\s*\{)?\s*\(?([A-J])\)?\s*\}?\s*\)?")
_CHOSEN = re.compile(
    r"\*{0,2}\(?(?:\\(?:text|math)(?:bf|rm|it)?\s*\{\s*)?\(?([A-J])\b\)?(?:\s*\})?(?:[.:,)*]|$|(?<![AI])\s)"
)

read(r"\frac{1}{2}")  # loads the LaTeX grammar now, so the first completion does not pay for it


class UnreadableAnswerError(ValueError):
    """The reference answer says nothing."""


def grade(spec: MathVerify, completion: str, answer: str) -> float:
    """1 when the final answer equals the reference, else 0. Raises UnreadableAnswerError."""
    references = list(_values(answer))
    if not references:
        raise UnreadableAnswerError(f"can't read the reference answer {answer[:100]!r}")
    if choice := _CHOICE.fullmatch(_bare(answer)):
        return float(any(_chosen(found) == choice[1] for found in final_answers(completion)))
    reference = references[0]
    for place, found in enumerate(_values_of(completion)):
        if place and reference.unit and not found.unit and reference.unit not in completion.casefold():
            break  # a number out of a sentence that does not say the unit
        if equal(reference, found):
            return 1.0
    return 0.0


def _bare(answer: str) -> str:
    """The reference's answer: it may be marked up as in a completion."""
    marked = "\\boxed" in answer or re.fullmatch(r"\s*(\$.+\$|\\\(.+\\\)|\\\[.+\\\])\s*", answer, re.DOTALL)
    return next(final_answers(answer), "") if marked else answer.strip()


def _values(answer: str) -> Iterator[Value]:
    if (value := read(_bare(answer))) is not None:
        yield value


def _values_of(completion: str) -> Iterator[Value]:
    for found in final_answers(completion):
        if (value := read(found)) is not None:
            yield value


def _chosen(found: str) -> str | None:
    letter = _CHOSEN.match(found.strip().strip("$").strip())
    return letter[1] if letter else None
