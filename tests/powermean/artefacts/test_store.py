import hashlib
from pathlib import Path

import pytest

from powermean.artefacts import (
    ArtefactCorruptError,
    ArtefactMissingError,
    ArtefactStore,
    ArtefactStoreUnavailableError,
)
from powermean.contracts.artefacts import ArtefactRef

OWNER = "jobs/job-1/model"


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


def test_the_probe_passes_and_leaves_nothing(store: ArtefactStore) -> None:
    store.probe()
    assert store.list("probe") == ()


def test_an_unusable_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtefactStoreUnavailableError):
        ArtefactStore(f"file://{tmp_path}/file").probe()
    with pytest.raises(ArtefactStoreUnavailableError):
        ArtefactStore("nosuch://x")
