"""The loop of a grader process: one JSON line in, one JSON line out.

A request is [completion, answer]; a reply is {"reward": number} or {"error": text}. The first line out is
{"ready": true}, once everything slow is loaded.
"""

import json
import os
import sys
from collections.abc import Callable


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
    except Exception as error:  # noqa: BLE001  a grader's failure is the completion's, and is recorded on it
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _send(write: Callable[[str], object], message: dict[str, object]) -> None:
    write(json.dumps(message) + "\n")
