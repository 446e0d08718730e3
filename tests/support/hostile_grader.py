"""A grader process that does to each completion what the completion says."""

import os
import time

from trainer.rewards.serving import serve


def grade(completion: str, answer: str) -> float:
    if completion == "raise":
        raise ArithmeticError("no such number")
    if completion == "die":
        os._exit(7)
    if completion == "hang":
        time.sleep(600)
    print("graders may print")
    return float(completion)


if __name__ == "__main__":
    serve(grade)
