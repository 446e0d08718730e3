"""A job's grader process: python -m trainer.rewards.serving REWARD, its spec as JSON.

One JSON line in, one JSON line out. A request is [completion, answer]; a reply is {"reward": number} or
{"error": text}. The first line out is {"ready": true}, once everything slow has loaded.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial

from pydantic import TypeAdapter

from powermean.contracts.rewards import RewardSpec

MEMORY_LIMIT = 4 * 2**30  # bytes of address space


def main(spec_json: str) -> None:
    """Grade what comes in on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    spec: RewardSpec = TypeAdapter(RewardSpec).validate_json(spec_json)
    grader = importlib.import_module(f"trainer.rewards.{spec.kind}")
    serve(partial(grader.grade, spec))


def serve(grade: Callable[[str, str], float]) -> None:
    """Reply to each line of standard input until it ends. Whatever a grader prints goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _send(replies.write, {"ready": True})
    replies.flush()
    for line in sys.stdin.buffer:
        completion, answer = json.loads(line)
        _send(replies.write, _reply(grade, completion, answer))
        replies.flush()


def _reply(grade: Callable[[str, str], float], completion: str, answer: str) -> dict[str, object]:
    try:
        return {"reward": grade(completion, answer)}
    except Exception as error:  # noqa: BLE001  recorded as this completion's failure
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _send(write: Callable[[str], object], message: dict[str, object]) -> None:
    write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
