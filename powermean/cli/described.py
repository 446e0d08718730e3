"""Checks a job on a cluster that a file describes: by the server's planner, and by a node's own checks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from powermean.cli.specs import located
from powermean.cli.terminal import note
from powermean.contracts.api import FieldError
from powermean.contracts.attempts import ValidationResult
from powermean.contracts.clusters import DescribedCluster, DescribedTask
from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError
from powermean.field_errors import field_errors
from powermean.spec_files import SpecFileError, read_file

PROGRAMS = {"server": "server.described", "trainer": "trainer.preflight.described"}


def load_cluster(file: Path) -> DescribedCluster:
    """Raises SpecFileError."""
    text = read_file(file)
    try:
        return DescribedCluster.model_validate(text.fields)
    except ValidationError as error:
        wrong = field_errors(error.errors(include_url=False), text.fields, DescribedCluster)
        raise SpecFileError(file, located(wrong, text)) from error


def check_on(cluster: DescribedCluster, file: Path, spec: JobSpec, prompt_tokens: int) -> None:
    """Raises SpecFileError with all that a server and a node of that cluster would say against the job."""
    if spec.rollout.sharing == "shared":
        note("Whether a declared engine serves the job is not checked: a cluster file has none.")
    task = DescribedTask(spec=spec, cluster=cluster, prompt_tokens=prompt_tokens).model_dump_json()
    wrong: list[FieldError] = []
    for room, module in PROGRAMS.items():
        if importlib.util.find_spec(room) is None:
            note(f"The {room}'s checks are left out: it is not installed here.")
            continue
        command = [sys.executable, "-m", module]
        done = subprocess.run(command, input=task, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PowermeanError(
                f"{module} broke off: {done.stderr[-1000:] or 'no answer'}", code="check_failed"
            )
        found = ValidationResult.model_validate_json(done.stdout.splitlines()[-1])
        wrong += [
            FieldError(path=one.path or "", message=one.message, remedy=one.remedy) for one in found.errors
        ]
    if wrong:
        raise SpecFileError(file, located(wrong, read_file(file)))
