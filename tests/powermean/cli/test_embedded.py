"""What stands between a machine and its service is told in one clear line, before anything is started."""

import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from powermean.cli import embedded
from powermean.cli.children import Child, Keeper
from powermean.cli.embedded import (
    Embedded,
    EmbeddedError,
    choose_port,
    require_packages,
    require_space,
    secret,
)
from powermean.home import Home
from powermean.processes import ProcessId

DEADLINE_S = 10.0


def test_a_busy_port_is_told_with_the_remedy_or_passed_over() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} is in use: .*--port"):
            choose_port(port, or_next=False)
        assert choose_port(port, or_next=True) > port


def test_a_full_disk_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"GiB are free in .* make room"):
        require_space(tmp_path, 2**60)


def test_a_missing_package_is_told_with_the_remedy() -> None:
    with pytest.raises(EmbeddedError, match="no_such_package is missing: install it"):
        require_packages([("no_such_package", "install it")])


def test_a_second_service_is_told_who_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "FREE_BYTES", 0)
    monkeypatch.setattr(embedded, "require_space", lambda folder: None)
    first, second = Embedded(Home(tmp_path)), Embedded(Home(tmp_path))
    first.url = "http://127.0.0.1:1"
    first._take_lock()
    first._note_holder()
    try:
        with pytest.raises(EmbeddedError, match=r"already runs in .*process \d+, http://127.0.0.1:1"):
            second.start()
    finally:
        first.stop()
    second._take_lock()
    second.stop()


def test_secrets_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    made = secret(tmp_path / "admin.key", "pm_")
    assert made.startswith("pm_")
    assert len(made) == 46
    assert secret(tmp_path / "admin.key", "pm_") == made
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_child_that_dies_is_started_again_and_one_that_was_stopped_is_not(tmp_path: Path) -> None:
    told: list[str] = []
    keeper = Keeper(told.append)
    keeper.start()
    child = Child(
        "sleeper", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], {}, tmp_path / "log"
    )
    keeper.add(child)
    first = running(child)
    assert child.process
    child.process.kill()
    second = running(child, unlike=first)
    keeper.stop("sleeper", grace_s=5)
    keeper.close()
    assert not second.alive
    assert child.deaths == 1
    assert told == [f"The sleeper ended with status -9 and is started again: see {tmp_path / 'log'}"]


def test_a_child_that_cannot_start_is_found_out_with_its_last_words(tmp_path: Path) -> None:
    keeper = Keeper(print)
    keeper.start()
    keeper.add(
        Child("broken", [sys.executable, "-S", "-c", "raise SystemExit('no luck')"], {}, tmp_path / "log")
    )
    deadline = time.monotonic() + DEADLINE_S
    while not (failing := keeper.failing()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    keeper.close()
    assert (failing.last_code, failing.last_words()) == (1, "no luck")


def running(child: Child, unlike: ProcessId | None = None) -> ProcessId:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < deadline
        process = child.process
        if process and process.poll() is None:
            with suppress(ProcessLookupError):  # killed, and not yet found out by poll
                found = ProcessId.of(process.pid)
                if found != unlike:
                    return found
        time.sleep(0.02)
