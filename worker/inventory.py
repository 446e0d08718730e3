"""What a node has and what still runs on it."""

import importlib.metadata
import importlib.util
import secrets
import socket
import time
from pathlib import Path

from powermean import __version__
from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import EngineReport, NodeReport
from powermean.contracts.revisions import NEWEST
from powermean.disk import first_full
from powermean.processes import ProcessId, end_all, marked
from worker.attempt_dir import MARK, AttemptDir, attempt_dirs, write_whole
from worker.gpus import Gpus
from worker.settings import NodeSettings
from worker.usage import UsageMeter

ENGINES = ("transformers", "vllm")  # their packages have the same names


def engines() -> tuple[str, ...]:
    """Rollout engines that are installed here."""
    return tuple(name for name in ENGINES if importlib.util.find_spec(name))


def running(data_dir: Path) -> dict[str, ProcessId | None]:
    """Attempts with live processes, and their supervisors, if those live.

    What a dead supervisor left behind is ended first, because the report says whether GPUs are free.
    """
    return {
        attempt.attempt_id: attempt.supervisor()
        for attempt in attempt_dirs(data_dir)
        if not attempt.ended and not _over(attempt)
    }


def supervisors(data_dir: Path) -> set[int]:
    """The processes that run attempts now."""
    found = (attempt.supervisor() for attempt in attempt_dirs(data_dir) if not attempt.ended)
    return {process.pid for process in found if process is not None and process.alive}


def _over(attempt: AttemptDir) -> bool:
    process = attempt.supervisor()
    if process and process.alive:
        return False
    if end_all(lambda: marked(MARK, attempt.mark), grace_s=0):
        return False
    attempt.close()
    return True


def instance(data_dir: Path) -> str:
    """This worker's identity: made once, kept with the attempts that it has to know of."""
    file = data_dir / "instance"
    if not file.exists():
        write_whole(file, secrets.token_hex(16), 0o600)
    return file.read_text()


class ReportNumbers:
    """Numbers that grow, also over restarts of this node's worker, and where its folder was put back."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "starts"
        self._start: int | None = None
        self._count = 0

    def next(self) -> int | None:
        """None as long as the disk is too full to note the start."""
        if self._start is None:
            try:
                start = max(self._last() + 1, int(time.time()))  # the clock may have been put back, too
                write_whole(self._file, str(start), 0o600)
            except OSError:
                return None
            self._start = start
        self._count += 1
        return (self._start << 31) + self._count  # below 2**63 until 2106

    def _last(self) -> int:
        """The start before; 0 if it can't be known. Raises OSError."""
        try:
            return int(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def full_disk(settings: NodeSettings) -> str | None:
    """A folder that attempts write to and whose disk is full."""
    store = ArtefactStore(settings.artefacts_url).folder
    found = first_full([settings.data_dir, *([store] if store else [])])
    return str(found) if found else None


def report(
    settings: NodeSettings,
    gpus: Gpus,
    usage: UsageMeter,
    services: tuple[EngineReport, ...],
    checking: tuple[str, ...] = (),
    *,
    leaving: bool = False,
    number: int | None = None,
) -> NodeReport:
    """The node's report: what it has and runs, with its engine services and the jobs that it is checking."""
    attempts = running(settings.data_dir)
    alive = {attempt_id: process for attempt_id, process in attempts.items() if process is not None}
    return NodeReport(
        hostname=socket.gethostname(),
        instance=instance(settings.data_dir),
        gpus=gpus.look(),
        cpu_slots=settings.cpu_slots,
        engines=engines(),
        labels=settings.labels,
        running=tuple(attempts),
        use=usage.look(alive),
        blind=gpus.blind,
        checking=checking,
        full_disk=full_disk(settings),
        services=services,
        leaving=leaving,
        number=number,
        version=__version__,
        revision=NEWEST,
    )
