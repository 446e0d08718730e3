"""Tests in two runs of pytest: those that may run beside others, then the rest one by one.

Those marked `long` wait for `make long`, which runs nothing else.

A failure in the first run does not keep the second from running. Arguments go to both.
"""

import signal
import subprocess
import sys

RUNS = {
    "tests that may run beside others": (
        *("--phase", "shared"),
        *("--numprocesses", "auto", "--dist", "loadfile"),  # a module's fixtures once
        "--no-loadscope-reorder",  # in the order of tests/conftest.py
    ),
    "tests that need the machine to themselves": ("--phase", "alone"),
}
NO_TESTS = 5  # pytest's exit status


def main(arguments: list[str]) -> int:
    """Run both; returns the exit status."""
    statuses = []
    for number, (title, options) in enumerate(RUNS.items(), 1):
        print(f"== {number} of {len(RUNS)}: {title}", flush=True)
        statuses.append(_pytest(*options, *arguments))
    return combined(statuses)


def combined(statuses: list[int]) -> int:
    """The first failure; a run without tests is none if the other had some."""
    return next((s for s in statuses if s not in (0, NO_TESTS)), min(statuses))


def _pytest(*arguments: str) -> int:
    with subprocess.Popen([sys.executable, "-m", "pytest", *arguments]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal told pytest, too: it prints what it has
            process.wait()
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
