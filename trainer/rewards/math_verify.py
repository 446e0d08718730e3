"""Is the completion's final expression mathematically equal to the reference answer?"""

import logging

from math_verify import parse, verify

from powermean.contracts.rewards import MathVerify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns on every call without its own time limit
parse("$1$", parsing_timeout=None)  # loads the LaTeX grammar now, so the first completion does not pay for it


class UnreadableAnswerError(ValueError):
    """The reference answer contains no expression."""


def grade(spec: MathVerify, completion: str, answer: str) -> float:
    """1 when the final expression equals the reference, else 0. Raises UnreadableAnswerError.

    math-verify's own time limits stay off: they need SIGALRM, and on a timeout they only say "not equal".
    """
    reference = _parse_answer(answer)
    if not reference:
        raise UnreadableAnswerError(f"math-verify can't read the reference answer {answer[:100]!r}")
    found = parse(completion, parsing_timeout=None)
    return float(verify(reference, found, timeout_seconds=None))


def _parse_answer(answer: str) -> list[object]:
    """A bare answer is read as LaTeX; without the dollar signs only plain numbers would be found in it."""
    bare = "$" not in answer and "\\boxed" not in answer
    found: list[object] = parse(f"${answer.strip()}$" if bare else answer, parsing_timeout=None)
    return found or list(parse(answer, parsing_timeout=None))
