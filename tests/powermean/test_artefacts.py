import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.artefacts import (
    MARKER,
    TEMPORARY_FOLDER,
    ArtefactCorruptError,
    ArtefactKeyInvalidError,
    ArtefactMissingError,
    ArtefactStore,
    ArtefactStoreFullError,
    ArtefactStoreUnavailableError,
    check_key,
)
from powermean.contracts.artefacts import ArtefactRef
from tests.support.small_disk import small_disk

OWNER = "jobs/job-1/model"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtefactStore]:
    """The same laws for a folder and for a file system that is none."""
    if request.param == "file":
        yield ArtefactStore(f"file://{tmp_path}/store")
        return
    yield ArtefactStore("memory://store")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(f"file://{tmp_path}/store")


def test_what_was_put_comes_back(store: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"abc" * 1000)
    ref = store.put_file(OWNER, source)
    assert (ref.size, ref.sha256) == (3000, hashlib.sha256(b"abc" * 1000).hexdigest())
    assert store.get_bytes(ref) == b"abc" * 1000
    assert store.read_range(ref, 1, 5) == b"bcab"
    assert store.read_range(ref, 2998, 9999) == b"bc"
    assert b"".join(store.chunks(ref, 10, 20)) == (b"abc" * 10)[10:20]
    assert store.local_copy(ref, tmp_path / "deep" / "copy").read_bytes() == b"abc" * 1000
    with store.open(ref) as file:
        assert file.read(3) == b"abc"
    assert source.exists()


def test_putting_twice_is_putting_once(store: ArtefactStore) -> None:
    first = store.put_bytes(OWNER, "a", b"x")
    assert store.put_bytes(OWNER, "a", b"x") == first
    assert store.list(OWNER) == (first,)


def test_a_consumed_file_is_gone_and_stored(store: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    for _ in range(2):
        source.write_bytes(b"big")
        ref = store.put_file(OWNER, source, "renamed", consume=True)
        assert not source.exists()
        assert ref.key.endswith("-renamed")
        assert store.get_bytes(ref) == b"big"


def test_a_consumed_file_of_the_same_disk_is_not_copied(folder: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(b"big")
    inode = source.stat().st_ino
    path = folder.local_path(folder.put_file(OWNER, source, consume=True))
    assert path is not None
    assert path.stat().st_ino == inode


def test_a_stored_copy_does_not_follow_its_source(store: ArtefactStore, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"before")
    ref = store.put_file(OWNER, source)
    source.write_bytes(b"after!")
    assert store.get_bytes(ref) == b"before"


def test_an_owner_is_listed_and_deleted_alone(store: ArtefactStore) -> None:
    mine = [store.put_bytes("jobs/a", "1", b"1"), store.put_bytes("jobs/a/deep", "2", b"2")]
    other = store.put_bytes("jobs/ab", "3", b"3")
    assert set(store.list("jobs/a")) == set(mine)
    store.delete_prefix("jobs/a")
    store.delete_prefix("jobs/a")
    assert store.list("jobs/a") == ()
    assert store.list("jobs/ab") == (other,)
    store.delete(other)
    store.delete(other)
    assert not store.exists(other)


def test_what_is_not_there_is_missing(store: ArtefactStore, tmp_path: Path) -> None:
    ref = ArtefactRef(key=f"{OWNER}/{'0' * 64}-x", sha256="0" * 64, size=1)
    for read in (store.get_bytes, store.open, store.chunks):
        with pytest.raises(ArtefactMissingError):
            read(ref)
    with pytest.raises(ArtefactMissingError):
        store.local_copy(ref, tmp_path / "copy")
    with pytest.raises(ArtefactMissingError):
        store.put_file(OWNER, tmp_path / "no such file")
    assert not (tmp_path / "copy").exists()


def test_damage_is_found_and_no_copy_is_left(folder: ArtefactStore, tmp_path: Path) -> None:
    ref = folder.put_bytes(OWNER, "a", b"good")
    path = folder.local_path(ref)
    assert path is not None
    path.write_bytes(b"evil")
    with pytest.raises(ArtefactCorruptError):
        folder.get_bytes(ref)
    with pytest.raises(ArtefactCorruptError):
        folder.local_copy(ref, tmp_path / "copies" / "copy")
    assert list((tmp_path / "copies").iterdir()) == []
    path.write_bytes(b"go")
    with pytest.raises(ArtefactCorruptError, match="2 bytes early"):
        list(folder.chunks(ref))


@pytest.mark.parametrize(
    "key",
    ["../x", "a/../b", "/etc/passwd", "a//b", "", ".", ".incoming/x", "a/.hidden", "a\\b", "a\0", "a/", "ä"],
)
def test_keys_that_could_leave_the_root_are_refused(folder: ArtefactStore, key: str) -> None:
    with pytest.raises(ArtefactKeyInvalidError):
        check_key(key)
    with pytest.raises(ArtefactKeyInvalidError):
        folder.put_bytes(key, "x", b"")
    with pytest.raises(ArtefactKeyInvalidError):
        folder.delete_prefix(key)


@given(st.text(max_size=30))
def test_a_key_that_is_accepted_stays_below_the_root(key: str) -> None:
    try:
        check_key(key)
    except ArtefactKeyInvalidError:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"


def test_a_link_out_of_the_store_is_not_followed(folder: ArtefactStore, tmp_path: Path) -> None:
    ref = folder.put_bytes("a", "x", b"1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtefactKeyInvalidError):
        folder.put_bytes("link", "x", b"1")
    with pytest.raises(ArtefactKeyInvalidError):
        folder.get_bytes(ArtefactRef(key="link/x", sha256=ref.sha256, size=1))


def test_names_are_made_safe(store: ArtefactStore) -> None:
    ref = store.put_bytes(OWNER, "../ä b/" + "c" * 300, b"x")
    check_key(ref.key)
    assert store.get_bytes(ref) == b"x"


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


def test_the_probe_passes_and_leaves_nothing(store: ArtefactStore) -> None:
    store.probe()
    assert store.list("probe") == ()


def test_an_unusable_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtefactStoreUnavailableError):
        ArtefactStore(f"file://{tmp_path}/file").probe()
    with pytest.raises(ArtefactStoreUnavailableError):
        ArtefactStore("nosuch://x")


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
