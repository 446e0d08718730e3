"""Sealed values: bound to their owner and name, readable with the key file alone."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from server.vault.key_file import KeyFile, KeyUnavailableError
from server.vault.sealing import Owner, seal, unseal

TEAM = Owner("project", "team-a")
VALUE = "hf_0123456789abcdefghij"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile.ensure(tmp_path / "secrets")


def test_a_sealed_value_opens_for_its_owner_and_name_alone(keys: KeyFile) -> None:
    sealed = seal(keys, TEAM, "hf", VALUE)
    assert VALUE.encode() not in sealed.blob + sealed.wrapped_key
    assert unseal(keys, TEAM, "hf", sealed) == VALUE
    for owner, name in (
        (TEAM, "wandb"),
        (Owner("project", "team-b"), "hf"),
        (Owner("person", "team-a"), "hf"),
    ):
        with pytest.raises(KeyUnavailableError, match="belongs to another name"):
            unseal(keys, owner, name, sealed)


def test_no_part_of_a_row_can_be_exchanged(keys: KeyFile) -> None:
    one, other = seal(keys, TEAM, "hf", VALUE), seal(keys, TEAM, "hf", "another value")
    for forged in (replace(one, blob=other.blob), replace(one, wrapped_key=other.wrapped_key)):
        with pytest.raises(KeyUnavailableError):
            unseal(keys, TEAM, "hf", forged)
    flipped = bytes([*one.blob[:-1], one.blob[-1] ^ 1])
    with pytest.raises(KeyUnavailableError):
        unseal(keys, TEAM, "hf", replace(one, blob=flipped))


def test_equal_values_look_different(keys: KeyFile) -> None:
    assert seal(keys, TEAM, "hf", VALUE).blob[12:] != seal(keys, TEAM, "hf", VALUE).blob[12:]


def test_the_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path, keys: KeyFile) -> None:
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    before = keys.path.read_bytes()
    assert KeyFile.ensure(tmp_path / "secrets").path.read_bytes() == before
    keys.add()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    keys.path.chmod(0o644)
    with pytest.raises(KeyUnavailableError, match="other users") as caught:
        KeyFile.ensure(tmp_path / "secrets")
    assert caught.value.remedy == f"chmod 600 {keys.path}"


def test_a_key_that_is_gone_is_named(keys: KeyFile) -> None:
    sealed = seal(keys, TEAM, "hf", VALUE)
    keys.add()
    assert unseal(keys, TEAM, "hf", sealed) == VALUE
    keys.keep({keys.ids()[-1]})
    with pytest.raises(KeyUnavailableError, match=sealed.key_id):
        unseal(keys, TEAM, "hf", sealed)


@pytest.mark.parametrize("content", ["", "nonsense", "key-1 AAAA\n", "key-1 !!!!\n", "a b c\n"])
def test_a_damaged_key_file_is_named(keys: KeyFile, content: str) -> None:
    keys.path.write_text(content)
    with pytest.raises(KeyUnavailableError, match=str(keys.path)):
        KeyFile.ensure(keys.path.parent)
