"""Runs the real supervisor with programs that a test wrote: `python supervised.py OPTIONS` (JSON)."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from powermean.contracts.attempts import Claim
from powermean.node_client import AttemptClient
from powermean.processes import Lifeline, ProcessId
from powermean.tether import adopt_orphans
from worker.attempt.limits import Limits
from worker.attempt.supervisor import Supervisor, read_secrets
from worker.attempt_dir import MARK, AttemptDir
from worker.launcher import Command


@dataclass
class ScriptLauncher:
    """Each program is a Python text, run with the attempt's folder as its argument."""

    programs: dict[str, str]
    secrets: dict[str, str]  # the trainer's
    shielded: bool = False

    def _command(self, name: str, attempt: AttemptDir, *more: str) -> Command:
        argv = (sys.executable, "-S", "-c", self.programs[name], str(attempt.path), *more)
        secrets = self.secrets if name == "trainer" else {}
        return Command(argv, dict(os.environ) | {MARK: attempt.mark}, secrets, self.shielded)

    def prepare(self, attempt: AttemptDir, claim: Claim) -> Command:
        return self._command("prepare", attempt)

    def engine(
        self, attempt: AttemptDir, claim: Claim, model: Path, replica: int = 0, port: int = 0
    ) -> Command:
        return self._command("engine", attempt, str(replica), str(port))

    def trainer(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        return self._command("trainer", attempt)


def main() -> None:
    options = json.loads(sys.argv[1])
    attempt = AttemptDir(Path(options["attempt_dir"]))
    launcher = ScriptLauncher(options["programs"], read_secrets(), "pilot" in options["limits"])
    adopt_orphans()
    with suppress(OSError):
        attempt.write_supervisor(ProcessId.own())
    claim = attempt.claim()
    lifeline = Lifeline(options["lifeline"]) if options.get("lifeline") else None
    with AttemptClient(options["url"], attempt.attempt_id, attempt.token()) as client:
        limits, place = Limits(**options["limits"]), (options["address"], options["port"])
        supervisor = Supervisor(attempt, claim, launcher, client, limits, lifeline, *place)
        told = supervisor.run()
    sys.exit(0 if told else 1)


if __name__ == "__main__":
    main()
