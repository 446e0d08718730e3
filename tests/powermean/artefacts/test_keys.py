import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.artefacts import ArtefactKeyInvalidError, ArtefactStore, check_key

OWNER = "jobs/job-1/model"


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


@pytest.mark.slow
@given(st.text(max_size=30))
def test_a_key_that_is_accepted_stays_below_the_root(key: str) -> None:
    try:
        check_key(key)
    except ArtefactKeyInvalidError:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"


def test_names_are_made_safe(store: ArtefactStore) -> None:
    ref = store.put_bytes(OWNER, "../ä b/" + "c" * 300, b"x")
    check_key(ref.key)
    assert store.get_bytes(ref) == b"x"
