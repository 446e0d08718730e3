"""How often the math_verify reward is wrong, over pairs whose right verdicts are known.

    python -m benchmarks.grading [FILE]

FILE has lines {"completion": ..., "answer": ..., "right": 0 or 1}. Prints false accepts, which training would
seek out, and false refusals; beside them those of math-verify's own verdict.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from math_verify import parse, verify

from powermean.contracts.rewards import MathVerify
from trainer.rewards.math_verify import grade

PAIRS = Path(__file__).parents[1] / "tests" / "trainer" / "rewards" / "math_pairs.jsonl"
Pair = tuple[str, str, bool]


def pairs(file: Path = PAIRS) -> list[Pair]:
    """(completion, reference answer, whether it is right)."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row["completion"], row["answer"], bool(row["right"])) for row in rows]


def wrong(found: list[Pair], verdict: Callable[[str, str], float]) -> tuple[list[Pair], list[Pair]]:
    """False accepts and false refusals."""
    judged = [(pair, bool(verdict(pair[0], pair[1]))) for pair in found]
    accepts = [pair for pair, verdict in judged if verdict and not pair[2]]
    return accepts, [pair for pair, verdict in judged if pair[2] and not verdict]


def ours(completion: str, answer: str) -> float:
    return grade(MathVerify(), completion, answer)


def librarys(completion: str, answer: str) -> float:
    """math-verify's verdict with its defaults; a bare answer is read as LaTeX."""
    bare = "$" not in answer and "\\boxed" not in answer
    reference = parse(f"${answer}$" if bare else answer, parsing_timeout=None)
    return float(verify(reference, parse(completion, parsing_timeout=None), timeout_seconds=None))


def lines(found: list[Pair]) -> Iterator[str]:
    """The table."""
    accepted = sum(right for *_, right in found)
    yield f"{len(found)} pairs: {accepted} right, {len(found) - accepted} wrong"
    yield "| verdict of | false accepts | false refusals |"
    yield "|---|---|---|"
    for name, verdict in (("reward.kind math_verify", ours), ("math-verify's defaults", librarys)):
        accepts, refusals = wrong(found, verdict)
        yield f"| {name} | {len(accepts)} | {len(refusals)} ({len(refusals) / accepted:.1%}) |"


if __name__ == "__main__":
    print("\n".join(lines(pairs(*map(Path, sys.argv[1:])))))
