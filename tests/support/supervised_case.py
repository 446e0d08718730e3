"""An attempt under the real supervisor, with programs that a test wrote."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from powermean.processes import end_all, marked
from tests.support.fake_server import NodeServer
from worker.attempt_dir import MARK, AttemptDir
from worker.node import held_back

DEADLINE_S = 20.0
PREPARE = "print('/some/model')"
WAIT = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
SPOOL = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
def spool(number, kind, body):
    path = folder / "spool" / f"{number:08d}.json"
    part = path.with_name("." + path.name)
    part.write_text(json.dumps({"kind": kind, "body": body}))
    part.rename(path)
def rows(step):
    return {"rows": [{"step": step, "update": -1, "name": "reward", "value": 0.5}]}
"""
MODEL = {"files": {}}
FINISHED = {"outcome": "finished", "result": {"steps": 2, "tokens": 10, "model": MODEL}}


@dataclass
class Case:
    """One attempt under a supervisor."""

    server: NodeServer
    attempt: AttemptDir
    programs: dict[str, str] = field(
        default_factory=lambda: {"prepare": PREPARE, "engine": WAIT, "trainer": WAIT}
    )
    limits: dict[str, float | str] = field(default_factory=lambda: {"grace_s": 1.0, "stopping_s": 1.0})
    lifeline: int | None = None
    secrets: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"  # at which other nodes reach this one
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self, trainer: str | None = None, **programs: str) -> None:
        self.programs |= programs | ({"trainer": trainer} if trainer else {})
        options = {
            "attempt_dir": str(self.attempt.path),
            "url": self.server.url,
            "programs": self.programs,
            "limits": self.limits,
            "lifeline": self.lifeline,
            "address": self.address,
            "port": self.port,
        }
        with held_back(signal.SIGTERM):  # as the worker does
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.supervised", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(self.secrets))
        self.process.stdin.close()
        self.process.stdin = None

    def end(self) -> int:
        """Its exit status; fails when anything of the attempt still runs then."""
        assert self.process
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        assert marked(MARK, self.attempt.mark) == set(), output
        return self.process.returncode

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
        end_all(self.running, grace_s=0)

    def running(self) -> set[int]:
        return marked(MARK, self.attempt.mark)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


def make_case(data_dir: Path, server: NodeServer, attempt_id: str, **claim: Any) -> Case:
    """A case with its attempt's folder under `data_dir`; `claim` replaces parts of the claim."""
    spec = {
        "name": "test",
        "model": {"name": "some/model"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 2},
        "resources": claim.pop("resources", {}),
    }
    given: dict[str, Any] = {
        "attempt_id": attempt_id,
        "job_id": attempt_id[:-2],
        "number": 1,
        "spec": JobSpec.model_validate(spec),
        "allocations": (),
        "token": "token-0",
        "lease_s": 1.0,
        "beat_s": 0.1,
    }
    (data_dir / "attempts").mkdir(parents=True)
    folder = data_dir / "attempts" / attempt_id
    return Case(server, AttemptDir.create(folder, Claim.model_validate(given | claim)))
