"""Folders of the living are kept, those of the killed are removed."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.own_folder import FOLDER_PREFIX, OwnFolder, remove_abandoned

OWNER = """
import sys, time
from rollout.own_folder import OwnFolder
folder = OwnFolder()
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_a_killed_owners_folder_goes_when_the_next_one_comes() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        (path / "adapters").mkdir()
        remove_abandoned()
        assert path.is_dir()
        owner.kill()
    made = OwnFolder()
    assert not path.exists()
    assert made.path.stat().st_mode & 0o777 == 0o700
    made.remove()
    made.remove()
    assert not made.path.exists()


def test_folders_without_an_owners_lock_are_left(room: Path) -> None:
    """They may be another's, or just being made."""
    (room / f"{FOLDER_PREFIX}x").mkdir()
    remove_abandoned()
    assert (room / f"{FOLDER_PREFIX}x").is_dir()


def test_a_sockets_path_fits_also_where_the_temporary_folder_is_deep(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = room / ("deep" * 20)
    deep.mkdir()
    for folder, where in ((room, room), (deep, Path("/tmp"))):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        made = OwnFolder()
        assert made.path.parent == where
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(made.path / ("x" * 36)))
        made.remove()
