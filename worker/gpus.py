"""The node's GPUs as nvidia-smi shows them: what they are, how busy they are, and whether they are well.

Unhealthy, so that it gets no work, is a GPU with uncorrected memory errors since its last reset, one that the
hardware slows down for its heat, one with an Xid in the kernel's log that stands for broken hardware, and one
that nvidia-smi has stopped showing. An Xid counts until the worker is restarted: nothing else says that
somebody has reset the GPU.
"""

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from powermean.contracts.attempts import MOST_MEMORY_MB, GpuInfo

log = logging.getLogger("powermean.worker")

LOOK_S = 10.0  # for an answer of nvidia-smi
KILLED_S = 1.0  # for its end once it was killed
EVERY_S = 10.0  # between looks
AFTER_SILENCE_S = 60.0  # between looks at a driver that does not answer
KERNEL_LOG = Path("/dev/kmsg")
RECORD_BYTES = 8192  # most that the kernel writes of a message
IDENTITY = ("index", "uuid", "name", "memory.total", "pci.bus_id")
GAUGES = ("utilization.gpu", "memory.used", "temperature.gpu", "power.draw")
ECC = "ecc.errors.uncorrected.volatile.total"
# Drivers refuse a query with a field that they don't know: the newest names first.
HEALTH = (
    (ECC, "clocks_event_reasons.hw_thermal_slowdown"),
    (ECC, "clocks_throttle_reasons.hw_thermal_slowdown"),
    (),
)
# https://docs.nvidia.com/deploy/xid-errors: those that stand for broken hardware, not for a broken program.
XIDS = {
    48: "uncorrectable memory error",
    62: "its microcontroller halted",
    64: "a bad row of its memory could not be replaced",
    74: "NVLink error",
    79: "it has fallen off the bus",
    95: "uncontained memory error",
    119: "its firmware does not answer",
    120: "its firmware failed",
    140: "unrecovered memory error",
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


class Gpus:
    """The GPUs, looked at every ten seconds."""

    def __init__(self, kernel_log: Path = KERNEL_LOG) -> None:
        self._cards: tuple[GpuInfo, ...] = ()
        self._next_look = float("-inf")
        self._health = 0  # place in HEALTH of what the driver knows
        self._child: subprocess.Popen[str] | None = None  # the last nvidia-smi
        self._xids = Xids(kernel_log) if shutil.which("nvidia-smi") else None

    @property
    def blind(self) -> tuple[str, ...]:
        """What of their health can't be read here, for people."""
        if not self._cards or self._xids is None:
            return ()
        unread = [] if self._xids.readable else ["Xid errors: this user may not read the kernel's log"]
        if not HEALTH[self._health]:
            unread.append("memory errors and slow-downs: nvidia-smi does not know the fields")
        return tuple(unread)

    def look(self) -> tuple[GpuInfo, ...]:
        """The GPUs; none without a driver. Those that were there stay, unhealthy, if the driver is silent."""
        program = shutil.which("nvidia-smi")
        if program is None or self._xids is None:
            return ()
        if time.monotonic() < self._next_look:
            return self._cards
        found: tuple[GpuInfo, ...] = ()
        pause, why = EVERY_S, "nvidia-smi does not show it any more"
        try:
            found = visible(read_gpus(self._ask(program), self._fields, self._xids.so_far()))
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("nvidia-smi: %s", error)
            pause, why = AFTER_SILENCE_S, "nvidia-smi gives no answer"
        cards = {card.uuid: _lost(card, why) for card in self._cards} | {card.uuid: card for card in found}
        self._cards = tuple(cards.values())
        self._next_look = time.monotonic() + pause
        return self._cards

    @property
    def _fields(self) -> tuple[str, ...]:
        return (*IDENTITY, *GAUGES, *HEALTH[self._health])

    def _ask(self, program: str) -> str:
        """What it prints; also if it fails over one GPU and has lines for others."""
        while True:
            query = [program, f"--query-gpu={','.join(self._fields)}", "--format=csv,noheader,nounits"]
            answer = self._run(query)
            unknown = "not a valid field" in answer.stdout + answer.stderr
            if not (unknown and HEALTH[self._health]):
                if "GPU-" not in answer.stdout:
                    answer.check_returncode()
                return answer.stdout
            self._health += 1

    def _run(self, query: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Its answer. One that a broken driver holds in the kernel dies of no signal: it is left behind, and
        no second one is started beside it.

        Raises OSError and SubprocessError.
        """
        if self._child is not None and self._child.poll() is None:
            raise subprocess.SubprocessError(f"the one with process id {self._child.pid} is still stuck")
        child = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._child = child
        try:
            out, err = child.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(KILLED_S)
            raise
        finally:
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
        return subprocess.CompletedProcess(query, child.returncode, out, err)


def visible(cards: Mapping[int, GpuInfo], chosen: str | None = None) -> tuple[GpuInfo, ...]:
    """Those that this process may use: nvidia-smi shows the GPUs of other allocations on the host, too.

    `cards` are by the driver's index: one that is gone leaves a gap. `chosen` is CUDA_VISIBLE_DEVICES:
    indices or UUIDs; as for CUDA, the first unknown one ends the list.
    """
    if chosen is None:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(cards.values())
    found: list[GpuInfo] = []
    for word in (one.strip() for one in chosen.split(",")):
        if word.isascii() and word.isdigit():
            card = cards.get(int(word))
        else:
            card = next((one for one in cards.values() if word and one.uuid.startswith(word)), None)
        if card is None:
            break
        found.append(card)
    return tuple(found)


def _lost(card: GpuInfo, why: str) -> GpuInfo:
    return GpuInfo(uuid=card.uuid, name=card.name, memory_mb=card.memory_mb, unhealthy=why)


def read_gpus(text: str, fields: Sequence[str], xids: dict[str, int]) -> dict[int, GpuInfo]:
    """Lines of nvidia-smi's CSV with these fields, by the driver's index; `xids` are by PCI address.

    What is no number there (`[N/A]`) is unknown; a line of another form is left out.
    """
    rows = [dict(zip(fields, line.split(", "), strict=False)) for line in text.splitlines() if line.strip()]
    return {
        int(row["index"]): _gpu(row, xids)
        for row in rows
        if row.keys() == set(fields) and row["index"].isdecimal()
    }


def _gpu(row: dict[str, str], xids: dict[str, int]) -> GpuInfo:
    memory = _number(row["memory.total"], MOST_MEMORY_MB)
    used = _number(row["memory.used"], memory or MOST_MEMORY_MB)
    heat = _number(row["temperature.gpu"], 1000)
    return GpuInfo(
        uuid=row["uuid"],
        name=row["name"],
        memory_mb=int(memory or 0),
        utilisation=_number(row["utilization.gpu"], 100),
        memory_used_mb=None if used is None else int(used),
        temperature_c=None if heat is None else int(heat),
        power_w=_number(row["power.draw"], 100_000),
        unhealthy=_unhealthy(row, xids.get(address(row["pci.bus_id"]))),
    )


def _unhealthy(row: dict[str, str], xid: int | None) -> str | None:
    """Words that stay the same while nothing changes: a new one is new to the scheduler."""
    if xid is not None:
        return f"Xid {xid}: {XIDS[xid]}"
    if errors := _number(row.get(ECC, ""), float("inf")):
        return f"uncorrected memory errors since its last reset: {errors:.0f}"
    if any(row[field] == "Active" for field in row if field.endswith("hw_thermal_slowdown")):
        return "slowed down by its heat"
    return None


def _number(text: str, most: float) -> float | None:
    """From 0 to `most`: a report with more would be refused, and the node be offline. None for `[N/A]`."""
    try:
        return min(max(0.0, float(text)), most)
    except ValueError:
        return None


def address(pci: str) -> str:
    """The PCI address as both write it: nvidia-smi 00000000:3B:00.0, the kernel 0000:3b:00."""
    domain, _, rest = pci.lower().partition(":")
    return f"{domain[-4:]}:{rest.partition('.')[0]}"


class Xids:
    """The Xids that the kernel has logged since this worker started and that stand for broken hardware."""

    def __init__(self, kernel_log: Path = KERNEL_LOG) -> None:
        self._found: dict[str, int] = {}  # by PCI address, the first
        self._log: int | None = None
        try:
            self._log = os.open(kernel_log, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._log, 0, os.SEEK_END)
        except OSError as error:
            log.warning("GPU errors (Xid) are not seen: %s", error)

    @property
    def readable(self) -> bool:
        return self._log is not None

    def so_far(self) -> dict[str, int]:
        """By PCI address."""
        for pci, xid in find_xids(self._new_records()):
            self._found.setdefault(address(pci), xid)
        return dict(self._found)

    def _new_records(self) -> Iterable[str]:
        while self._log is not None:
            try:
                record = os.read(self._log, RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # the kernel has overwritten what was next: read on with what is there
                continue
            if not record:
                return
            yield record.decode(errors="replace")


def find_xids(records: Iterable[str]) -> list[tuple[str, int]]:
    """PCI address and number of each Xid that stands for broken hardware."""
    found = (match for record in records for match in _XID.finditer(record))
    return [(match[1], int(match[2])) for match in found if int(match[2]) in XIDS]
