"""The grader process for math-verify: symbolic mathematics may run for ever or eat all memory."""

import logging
import resource

from math_verify import parse, verify

from trainer.rewards.serving import serve

MEMORY_LIMIT = 4 * 2**30  # bytes of address space


class UnreadableAnswerError(ValueError):
    """The reference answer holds no expression."""


def grade(completion: str, answer: str) -> float:
    """1 when the completion's final expression equals the reference, else 0.

    Raises UnreadableAnswerError. There is no time limit in here: math-verify's own
    needs SIGALRM and gives up silently.
    """
    reference = _parse_answer(answer)
    if not reference:
        raise UnreadableAnswerError(f"math-verify can't read the reference answer {answer[:100]!r}")
    found = parse(completion, parsing_timeout=None)
    return float(verify(reference, found, timeout_seconds=None))


def _parse_answer(answer: str) -> list[object]:
    """A bare answer is read as LaTeX: without the dollars only plain numbers would be found in it."""
    bare = "$" not in answer and "\\boxed" not in answer
    found: list[object] = parse(f"${answer.strip()}$" if bare else answer, parsing_timeout=None)
    return found or list(parse(answer, parsing_timeout=None))


def main() -> None:
    """Grade what comes in on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns on each call without its own time limit
    parse("$1$", parsing_timeout=None)  # the first call loads its LaTeX grammar: not in a completion's time
    serve(grade)


if __name__ == "__main__":
    main()
