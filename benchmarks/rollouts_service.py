"""A rollout service for a benchmark: the process that a node starts, spoken to as the trainer does."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import EngineStart
from powermean.processes import descendants
from powermean.tokens import ensure_key_pair, sign_attempt_token
from rollout.client import RolloutClient
from worker.launcher import PATIENT

JOB = f"benchmark-{os.getpid()}"  # it names files in /dev/shm, which all benchmarks share
ROOT = Path(__file__).resolve().parent.parent
START_S = 900.0
STOP_S = 30.0


class NotStartedError(Exception):
    """The service ended, or did not serve in time. The message has its reason and its last lines."""


@dataclass(frozen=True)
class Service:
    """A service that is ready. `folder` holds its artefact store, and goes when the service does."""

    engine: str
    pid: int
    url: str
    client: RolloutClient
    token: str
    store: ArtefactStore
    folder: Path

    def memory(self) -> int:
        """Bytes that the service and this process take together; what they share counts once."""
        return sum(map(_proportional_bytes, (os.getpid(), *self._pids())))

    def cpu_seconds(self) -> float:
        """That the service and this process have taken so far."""
        return time.process_time() + sum(map(_cpu_seconds, self._pids()))

    def _pids(self) -> list[int]:
        return [self.pid, *descendants(self.pid)]

    def counter(self, name: str) -> float:
        """Sum of a counter of its metrics page; 0 where the engine has none of this name."""
        headers = {"Authorization": f"Bearer {self.token}"}
        page = httpx.get(f"{self.url}/metrics", headers=headers, timeout=10, trust_env=False)
        return counted(page.raise_for_status().text, name)


def counted(page: str, name: str) -> float:
    """Sum over all labels of a metric in Prometheus text."""
    lines = [line for line in page.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _proportional_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(engine: str, model: Path, *flags: str) -> Iterator[Service]:
    """The service, ready; ended with the block.

    `flags` are more of its command line. Raises NotStartedError.
    """
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-") as scratch:
        folder = Path(scratch)
        keys = ensure_key_pair(folder / "secrets")
        (folder / "key.pub").write_text(keys.public_pem)
        store, ready, log = ArtefactStore((folder / "artefacts").as_uri()), folder / "ready", folder / "log"
        store.make()
        command = [
            *(sys.executable, "-m", "rollout", "--engine", engine, "--model", str(model)),
            *("--job-id", JOB, "--public-key", str(folder / "key.pub"), "--artefacts-url", store.url),
            *("--ready-file", str(ready), *flags),
        ]
        told(f"starting the {engine} engine on {model.name} ...")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=PATIENT | os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=out, stderr=out
            )
        try:
            url = _url(process, ready, log, f"the {engine} engine did not start on {model.name}")
            token = sign_attempt_token(keys.private_pem, JOB, 1, lifetime_s=86_400)
            with RolloutClient(url, lambda: token) as client:
                yield Service(engine, process.pid, url, client, token, store, folder)
        finally:
            _end(process)


def _url(process: subprocess.Popen[bytes], ready: Path, log: Path, failed: str) -> str:
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()[-15:]
            raise NotStartedError("\n".join([f"{failed}; its last lines:", *lines]))
        time.sleep(0.1)
    start = EngineStart.model_validate_json(ready.read_bytes())
    if start.error is not None or start.url is None:
        raise NotStartedError(f"{failed}: {start.error.message if start.error else 'it gave no address'}")
    return start.url


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def told(text: str) -> None:
    """Progress, for whoever waits."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
