"""What a node has and what still runs on it."""

import importlib.metadata
import importlib.util
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

from powermean import __version__
from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import EngineReport, GpuInfo, NodeReport
from powermean.disk import first_full
from powermean.processes import end_all, marked
from worker.attempt_dir import MARK, AttemptDir, attempt_dirs, write_whole
from worker.settings import NodeSettings

QUERY = ("--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
LOOK_S = 10.0  # for nvidia-smi
ENGINES = ("transformers", "vllm")  # their packages have the same names


def gpus() -> tuple[GpuInfo, ...]:
    """The node's GPUs according to nvidia-smi; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=LOOK_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(answer.stdout)


def read_gpus(text: str) -> tuple[GpuInfo, ...]:
    """Lines of `uuid, name, MiB`."""
    rows = [line.split(", ") for line in text.splitlines() if line.strip()]
    return tuple(
        GpuInfo(uuid=uuid, name=name, memory_mb=int(memory) if memory.isdigit() else 0)
        for uuid, name, memory in rows
    )


def engines() -> tuple[str, ...]:
    """Rollout engines that are installed here."""
    return tuple(name for name in ENGINES if importlib.util.find_spec(name))


def running(data_dir: Path) -> tuple[str, ...]:
    """Attempts with live processes.

    What a dead supervisor left behind is ended first, because the report says whether GPUs are free.
    """
    return tuple(
        attempt.attempt_id for attempt in attempt_dirs(data_dir) if not attempt.ended and not _over(attempt)
    )


def _over(attempt: AttemptDir) -> bool:
    process = attempt.supervisor()
    if process and process.alive:
        return False
    if end_all(lambda: marked(MARK, attempt.attempt_id), grace_s=0):
        return False
    attempt.close()
    return True


def instance(data_dir: Path) -> str:
    """This worker's identity: made once, kept with the attempts that it has to know of."""
    file = data_dir / "instance"
    if not file.exists():
        write_whole(file, secrets.token_hex(16), 0o600)
    return file.read_text()


def full_disk(settings: NodeSettings) -> str | None:
    """A folder that attempts write to and whose disk is full."""
    store = ArtefactStore(settings.artefacts_url).folder
    found = first_full([settings.data_dir, *([store] if store else [])])
    return str(found) if found else None


def report(
    settings: NodeSettings,
    cards: tuple[GpuInfo, ...],
    services: tuple[EngineReport, ...],
    checking: tuple[str, ...] = (),
) -> NodeReport:
    """The node's report: its GPUs, the reports on its engine services, the jobs that it is checking."""
    return NodeReport(
        hostname=socket.gethostname(),
        instance=instance(settings.data_dir),
        gpus=cards,
        cpu_slots=settings.cpu_slots,
        engines=engines(),
        labels=settings.labels,
        running=running(settings.data_dir),
        checking=checking,
        full_disk=full_disk(settings),
        services=services,
        version=__version__,
    )
