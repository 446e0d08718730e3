"""The grader process for a user's regular expression, which may run for ever."""

import json
import re
import sys

from trainer.rewards.exact_match import same_text
from trainer.rewards.serving import serve


def grade(pattern: re.Pattern[str], ignore_case: bool, completion: str, answer: str) -> float:
    """1 when the last match (its group 1 where it has one) equals the answer, else 0."""
    found = None
    for match in pattern.finditer(completion):
        found = match[1] if pattern.groups else match[0]
    return float(found is not None and same_text(found.strip(), answer.strip(), ignore_case))


def main(settings: str) -> None:
    """Grade what comes in on standard input until it ends."""
    values = json.loads(settings)
    pattern, ignore_case = re.compile(values["pattern"]), bool(values["ignore_case"])
    serve(lambda completion, answer: grade(pattern, ignore_case, completion, answer))


if __name__ == "__main__":
    main(sys.argv[1])
