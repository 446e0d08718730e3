"""What only a store that is a folder meets: full, read-only and missing disks, links, dead writers."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from powermean.artefacts import (
    MARKER,
    TEMPORARY_FOLDER,
    ArtefactKeyInvalidError,
    ArtefactStore,
    ArtefactStoreFullError,
    ArtefactStoreUnavailableError,
)
from powermean.contracts.artefacts import ArtefactRef
from tests.support.small_disk import small_disk

OWNER = "jobs/job-1/model"


def test_a_consumed_file_of_the_same_disk_is_not_copied(folder: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(b"big")
    inode = source.stat().st_ino
    path = folder.local_path(folder.put_file(OWNER, source, consume=True))
    assert path is not None
    assert path.stat().st_ino == inode


def test_a_link_out_of_the_store_is_not_followed(folder: ArtefactStore, tmp_path: Path) -> None:
    ref = folder.put_bytes("a", "x", b"1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtefactKeyInvalidError):
        folder.put_bytes("link", "x", b"1")
    with pytest.raises(ArtefactKeyInvalidError):
        folder.get_bytes(ArtefactRef(key="link/x", sha256=ref.sha256, size=1))


def test_a_full_disk_is_named_and_leaves_nothing(
    folder: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(ArtefactStoreFullError):
        folder.put_file(OWNER, source)
    with pytest.raises(ArtefactStoreFullError):
        folder.put_bytes(OWNER, "x", b"x")
    assert folder.list(OWNER) == ()
    assert list((tmp_path / "store" / TEMPORARY_FOLDER).iterdir()) == []
    assert source.exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_store_that_is_unmounted_is_named_until_it_is_back(tmp_path: Path, gone: bool) -> None:
    """Nothing is written to the empty folder in its place, and nothing counts as deleted."""
    url, place = f"file://{tmp_path}/store", tmp_path / "store"
    store = ArtefactStore(url)
    ref = store.put_bytes(OWNER, "x", b"1")
    source = tmp_path / "source"
    source.write_bytes(b"2")
    away = place.rename(tmp_path / "away")
    if not gone:
        place.mkdir()
    for one in (store, ArtefactStore(url, existing=True)):
        for use in (
            lambda s: s.get_bytes(ref), lambda s: s.put_bytes(OWNER, "y", b"2"), lambda s: s.exists(ref),
            lambda s: s.put_file(OWNER, source), lambda s: s.put_file(OWNER, source, consume=True),
            lambda s: s.list(OWNER), lambda s: s.delete(ref), lambda s: s.local_path(ref),
            lambda s: s.local_copy(ref, tmp_path / "copy"), lambda s: s.delete_prefix(OWNER),
            lambda s: s.probe(),
        ):  # fmt: skip
            with pytest.raises(ArtefactStoreUnavailableError, match="is not the artefact store"):
                use(one)
    assert source.exists()
    if not gone:
        assert list(place.iterdir()) == []
        place.rmdir()
    away.rename(place)
    assert store.get_bytes(ref) == b"1"
    assert ArtefactStore(url, existing=True).exists(store.put_bytes(OWNER, "y", b"2"))


def test_a_store_that_became_read_only_is_read_and_says_why_nothing_is_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store", 2**20) as place:
        store, source = ArtefactStore(f"file://{place}"), tmp_path / "source"
        source.write_bytes(b"2")
        ref = store.put_bytes(OWNER, "x", b"1")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for use in (
            lambda: store.put_bytes(OWNER, "y", b"2"), lambda: store.put_file(OWNER, source),
            lambda: store.put_file(OWNER, source, consume=True), lambda: store.delete(ref),
            lambda: store.delete_prefix(OWNER), store.probe,
        ):  # fmt: skip
            with pytest.raises(ArtefactStoreUnavailableError, match="Read-only file system"):
                use()
        assert store.get_bytes(ref) == b"1"
        assert source.exists()
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        assert store.get_bytes(store.put_bytes(OWNER, "y", b"2")) == b"2"


def test_half_written_files_are_swept_after_a_day(folder: ArtefactStore, tmp_path: Path) -> None:
    folder.put_bytes("a", "x", b"x")
    old, young = (tmp_path / "store" / TEMPORARY_FOLDER / name for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    folder.sweep()
    assert not old.exists()
    assert young.exists()


def test_a_disk_that_does_not_answer_is_an_unavailable_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = ArtefactStore(f"file://{tmp_path}").put_bytes("jobs/a", "x", b"x")
    exists = Path.exists

    def answered(path: Path) -> bool:
        if path.name == MARKER:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return exists(path)

    monkeypatch.setattr(Path, "exists", answered)
    store = ArtefactStore(f"file://{tmp_path}", existing=True)
    for call in (store.get_bytes, store.local_path, lambda ref: store.delete_prefix("jobs/a")):
        with pytest.raises(ArtefactStoreUnavailableError):
            call(ref)
