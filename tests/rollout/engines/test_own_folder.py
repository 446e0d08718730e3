"""Folders of the living are kept, those of the killed are removed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rollout.engines.own_folder import FOLDER_PREFIX, OwnFolder, remove_abandoned

OWNER = """
import sys, time
from rollout.engines.own_folder import OwnFolder
folder = OwnFolder()
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


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


def test_folders_without_an_owners_lock_are_left(tmp_path: Path) -> None:
    """They may be another's, or just being made."""
    (tmp_path / f"{FOLDER_PREFIX}x").mkdir()
    remove_abandoned()
    assert (tmp_path / f"{FOLDER_PREFIX}x").is_dir()
