"""Prepares a model on this node.

python -m trainer.models --claim FILE     prints the folder of the claim's model
python -m trainer.models --engine FILE    prints the folder of an engine service's model
python -m trainer.models --check          prints what is wrong with the ModelSpec on standard input, as a
                                          JobError; it fetches and prepares nothing
"""

import argparse
import os
import sys
from pathlib import Path

from powermean.importing import uncollected

with uncollected():
    from powermean.contracts.attempts import Claim, EngineStart, Finish
    from powermean.contracts.engines import EngineSpec
    from powermean.contracts.models import ModelSpec
    from trainer.failures import TrainingError
    from trainer.models.resolve import check_known, resolve_model
    from worker.reporter import Reporter
    from worker.settings import NodeSettings, NodeSettingsError


def main() -> int:
    """Print a model's folder. On status 1 stderr says why, and so does the attempt's spool or, for an engine
    service, the last line of output."""
    parser = argparse.ArgumentParser(prog="python -m trainer.models", description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--claim", type=Path, help="the attempt's claim.json")
    source.add_argument("--check", action="store_true", help="only look for the model")
    source.add_argument("--engine", type=Path, help="the engine service's spec, as JSON")
    arguments = parser.parse_args()
    if arguments.check:
        return _check(ModelSpec.model_validate_json(sys.stdin.read()))
    try:
        settings = NodeSettings.read()
        spec = _of_claim(arguments.claim) if arguments.claim else _of_engine(arguments.engine)
        print(resolve_model(spec, settings.data_dir, settings.model_roots, settings.allowed_models))
    except TrainingError as failure:
        print(f"error: {failure} {failure.remedy or ''}".strip(), file=sys.stderr)
        if arguments.claim:
            finish = Finish(outcome="failed", error=failure.error, retryable=failure.retryable)
            Reporter(arguments.claim.parent).finish(finish)
        else:
            print(EngineStart(error=failure.error, retryable=failure.retryable).model_dump_json())
        return 1
    except NodeSettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _check(spec: ModelSpec) -> int:
    roots = tuple(Path(one) for one in os.environ.get("POWERMEAN_MODEL_ROOTS", "").split(":") if one)
    try:
        check_known(spec, roots)
    except TrainingError as failure:
        print(failure.error.model_dump_json())
        return 1
    return 0


def _of_claim(file: Path) -> ModelSpec:
    return Claim.model_validate_json(file.read_bytes()).spec.model


def _of_engine(file: Path) -> ModelSpec:
    model = EngineSpec.model_validate_json(file.read_bytes()).model
    return ModelSpec(name=model.name, folder=model.folder)


if __name__ == "__main__":
    sys.exit(main())
