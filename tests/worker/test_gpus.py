"""GPUs as nvidia-smi shows them, and what makes one unhealthy. Its lines are written down here: no GPU."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from powermean.contracts.attempts import GpuInfo
from worker import gpus as module
from worker.gpus import HEALTH, XIDS, Gpus, Xids, address, find_xids, read_gpus, visible

FIELDS = (*module.IDENTITY, *module.GAUGES, *HEALTH[0])
WELL = "0, GPU-1, NVIDIA H100 80GB HBM3, 81559, 00000000:3B:00.0, 97, 70123, 61, 512.30, 0, Not Active"
IDLE = "1, GPU-2, NVIDIA H100 80GB HBM3, 81559, 00000000:5E:00.0, 0, 4, 33, 71.02, 0, Not Active"
FALLEN = "4,1234,99,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.\n"
PROGRAM = "4,1235,99,-;NVRM: Xid (PCI:0000:5e:00): 31, pid=7, MMU Fault: ENGINE GRAPHICS\n"


def read(*lines: str, xids: dict[str, int] | None = None) -> tuple[GpuInfo, ...]:
    return tuple(read_gpus("\n".join(lines), FIELDS, xids or {}).values())


def test_what_a_gpu_is_and_how_busy() -> None:
    first, second = read(WELL, IDLE)
    assert (first.uuid, first.name, first.memory_mb) == ("GPU-1", "NVIDIA H100 80GB HBM3", 81559)
    assert (first.utilisation, first.memory_used_mb, first.temperature_c, first.power_w) == (
        97,
        70123,
        61,
        512.3,
    )
    assert (first.unhealthy, second.utilisation) == (None, 0)


def test_what_is_not_known_is_left_open() -> None:
    (one,) = read("0, GPU-1, NVIDIA GB10, [N/A], 0000000F:01:00.0, 3, [N/A], 41, [N/A], [N/A], Not Active")
    assert (one.memory_mb, one.memory_used_mb, one.power_w, one.unhealthy) == (0, None, None, None)


def test_no_number_makes_a_report_that_the_server_refuses() -> None:
    (one,) = read(WELL.replace("70123", "81600").replace(" 97,", " 255,").replace("61", "-1"))
    assert (one.memory_used_mb, one.utilisation, one.temperature_c) == (81559, 100, 0)


def test_lines_of_another_form_are_no_gpus() -> None:
    lost = "Unable to determine the device handle for GPU0000:5E:00.0: Unknown Error"
    assert [gpu.uuid for gpu in read(lost, WELL, "")] == ["GPU-1"]


@pytest.mark.parametrize(
    ("line", "xids", "why"),
    [
        (WELL.replace("0, Not", "3, Not"), {}, "uncorrected memory errors since its last reset: 3"),
        (WELL.replace("Not Active", "Active"), {}, "slowed down by its heat"),
        (WELL, {"0000:3b:00": 79}, "Xid 79: it has fallen off the bus"),
        (WELL, {"0000:5e:00": 79}, None),
    ],
)
def test_what_makes_it_unhealthy(line: str, xids: dict[str, int], why: str | None) -> None:
    (one,) = read(line, xids=xids)
    assert one.unhealthy == why


def test_xids_of_hardware_count_and_those_of_programs_do_not() -> None:
    assert find_xids([FALLEN, PROGRAM, "6,1,2,-;usb 1-1: new device"]) == [("0000:3b:00", 79)]
    assert not {13, 31, 43, 45} & XIDS.keys()
    assert address("00000000:3B:00.0") == address("0000:3b:00") == "0000:3b:00"


def test_only_what_the_kernel_logs_from_now_on_counts_and_the_first_of_a_gpu_stays(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(FALLEN)
    xids = Xids(log)
    assert xids.so_far() == {}
    with log.open("a") as out:
        out.write(FALLEN.replace("79", "48"))
    assert xids.so_far() == {"0000:3b:00": 48}
    with log.open("a") as out:
        out.write(FALLEN)
    assert xids.so_far() == {"0000:3b:00": 48}


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An `nvidia-smi` on the path that is this shell script; looks follow each other without a pause."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    monkeypatch.setattr(module, "AFTER_SILENCE_S", 0.0)

    def write(script: str) -> None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return write


def prints(*lines: str) -> str:
    return "cat <<'END'\n{}\nEND".format("\n".join(lines))


def test_without_a_driver_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus = Gpus()
    assert (gpus.look(), gpus.blind) == ((), ())


def test_a_gpu_that_is_gone_and_a_driver_that_is_silent(
    smi: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smi(prints(WELL, IDLE))
    (tmp_path / "kmsg").touch()
    gpus = Gpus(tmp_path / "kmsg")
    assert [gpu.unhealthy for gpu in gpus.look()] == [None, None]
    assert gpus.blind == ()
    smi(prints("Unable to determine the device handle for GPU0000:3B:00.0", IDLE) + "\nexit 15")
    first, second = gpus.look()
    assert (first.uuid, first.unhealthy) == ("GPU-1", "nvidia-smi does not show it any more")
    assert (first.utilisation, second.unhealthy) == (None, None)
    smi("echo Driver/library version mismatch >&2; exit 18")
    assert [gpu.unhealthy for gpu in gpus.look()] == ["nvidia-smi gives no answer"] * 2
    assert "exit status 18" in caplog.text
    smi(prints(WELL, IDLE))
    assert [gpu.unhealthy for gpu in gpus.look()] == [None, None]


def test_one_that_no_signal_ends_is_left_behind_and_none_is_started_beside_it(
    smi: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(prints(WELL))
    gpus = Gpus(tmp_path / "missing")
    gpus.look()
    pids = tmp_path / "pids"
    smi(f"echo $$ >> {pids}; exec sleep 3")
    monkeypatch.setattr(module, "LOOK_S", 0.2)
    monkeypatch.setattr(module, "KILLED_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "kill", lambda _: None)  # as in an uninterruptible sleep
        for _ in range(2):
            assert [gpu.unhealthy for gpu in gpus.look()] == ["nvidia-smi gives no answer"]
    while not (pids.exists() and pids.read_text()):
        time.sleep(0.01)
    (pid,) = pids.read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)
    smi(prints(WELL))
    monkeypatch.setattr(module, "LOOK_S", 10.0)
    assert [gpu.unhealthy for gpu in gpus.look()] == [None]


def test_a_driver_that_lacks_fields_is_asked_for_fewer(smi: Callable[[str], None], tmp_path: Path) -> None:
    short = ", ".join(WELL.split(", ")[:9])
    refusal = 'case "$1" in *slowdown*) echo "Field is not a valid field to query."; exit 2;; esac'
    smi(f"{refusal}\n{prints(short)}")
    gpus = Gpus(tmp_path / "missing")
    (one,) = gpus.look()
    assert (one.utilisation, one.unhealthy) == (97, None)
    assert gpus.blind == (
        "Xid errors: this user may not read the kernel's log",
        "memory errors and slow-downs: nvidia-smi does not know the fields",
    )


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("0,2", ["GPU-a1", "GPU-c3"]),
        ("2,0", ["GPU-c3", "GPU-a1"]),
        ("GPU-b", ["GPU-b2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", ["GPU-b2"]),
    ],
)
def test_a_worker_offers_the_gpus_of_its_allocation_alone(chosen: str, seen: list[str]) -> None:
    cards = {
        place: GpuInfo(uuid=f"GPU-{one}", name="H100", memory_mb=80_000)
        for place, one in enumerate(("a1", "b2", "c3"))
    }
    assert [card.uuid for card in visible(cards, chosen)] == seen


def test_a_gpu_that_is_gone_gives_its_place_to_no_other() -> None:
    lines = [f"{place}, {IDLE.partition(', ')[2].replace('GPU-2', f'GPU-{place}')}" for place in (0, 2, 3, 4)]
    cards = read_gpus("\n".join(lines), FIELDS, {})
    assert [card.uuid for card in visible(cards, "2,3")] == ["GPU-2", "GPU-3"]
