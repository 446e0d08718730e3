"""Space that is held back is there when a disk is full, and is taken again when there is room."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean import disk
from powermean.disk import Ballast, first_full, is_full
from tests.support.small_disk import fill, small_disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 2**20) as folder:
        yield folder


def test_what_is_held_makes_room_on_a_full_disk(small: Path) -> None:
    ballast = Ballast(small / "ballast", 2**16)
    ballast.hold()
    filling = fill(small)
    with pytest.raises(OSError, match="No space left"):
        (small / "record").write_bytes(b"why it failed")
    assert ballast.release()
    (small / "record").write_bytes(b"why it failed")
    assert not ballast.release()
    ballast.hold()  # no room for it
    assert not ballast.path.exists()
    filling.unlink()
    ballast.hold()
    assert ballast.path.stat().st_blocks * 512 >= ballast.size


def test_a_disk_with_little_room_counts_as_full(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SCARCE_BYTES", 2**19)
    assert first_full([small, small / "missing"]) is None
    fill(small)
    assert first_full([small / "missing", small]) == small


def test_quotas_are_full_disks_too() -> None:
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(RuntimeError("No space left"))
