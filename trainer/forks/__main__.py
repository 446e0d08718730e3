"""Prepares what a fork begins with, on its node: python -m trainer.forks --claim FILE

Prints the model's folder, as trainer.models does for a model by name.
"""

import argparse
import sys
from pathlib import Path

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.attempts import Finish
from trainer.failures import TrainingError
from trainer.forks.start import start_of
from worker.attempt_dir import AttemptDir
from worker.reporter import Reporter
from worker.settings import NodeSettings, NodeSettingsError


def main() -> int:
    """On status 1 stderr says why, and so does the attempt's spool."""
    parser = argparse.ArgumentParser(prog="python -m trainer.forks", description=main.__doc__)
    parser.add_argument("--claim", type=Path, required=True, help="the attempt's claim.json")
    attempt = AttemptDir(parser.parse_args().claim.parent)
    try:
        settings = NodeSettings.read()
        store = ArtefactStore(settings.artefacts_url, existing=True)
        print(start_of(attempt.claim(), store, settings, attempt.start).folder)
    except (TrainingError, ArtefactError) as failure:
        print(f"error: {failure} {failure.remedy or ''}".strip(), file=sys.stderr)
        finish = Finish(outcome="failed", error=failure.error, retryable=failure.retryable)
        Reporter(attempt.path).finish(finish)
        return 1
    except NodeSettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
