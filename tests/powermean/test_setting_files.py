"""Settings from files: the same as from the environment, and each wrong file is named."""

from pathlib import Path

import pytest

from powermean.setting_files import SettingFileError
from server.settings import Settings
from worker.launcher import without_secrets
from worker.settings import NodeSettings, NodeSettingsError

URL = "redis://:pass word@redis:6379/0"


def test_a_file_stands_for_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "redis_url"
    secret.write_text(URL + "\n")
    monkeypatch.setenv("POWERMEAN_REDIS_URL_FILE", str(secret))
    monkeypatch.setenv("POWERMEAN_REDIS_URL", "")  # as docker-compose.yml passes on what is not set
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", "file:///data")
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path))
    assert Settings().redis_url == URL
    assert NodeSettings.read().redis_url == URL


def test_values_of_files_are_checked_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "port").write_text("many")
    monkeypatch.setenv("POWERMEAN_PORT_FILE", str(tmp_path / "port"))
    with pytest.raises(ValueError, match="port"):
        Settings()


@pytest.mark.parametrize(
    ("content", "variable", "said"),
    [
        (None, None, "No such file or directory"),
        (b"", None, "is empty"),
        (b"\n", None, "is empty"),
        (b"\xff\xfe", None, "is not UTF-8 text"),
        (b"secret", "another secret", "both set"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    content: bytes | None, variable: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("POWERMEAN_NODE_TOKEN_FILE", str(file))
    monkeypatch.setenv("POWERMEAN_BOOTSTRAP_NODE_TOKEN_FILE", str(file))
    if variable is not None:
        monkeypatch.setenv("POWERMEAN_NODE_TOKEN", variable)
        monkeypatch.setenv("POWERMEAN_BOOTSTRAP_NODE_TOKEN", variable)
    with pytest.raises(NodeSettingsError, match=said) as node:
        NodeSettings.read()
    with pytest.raises(SettingFileError, match=said) as server:
        Settings()
    for error in (node.value, server.value):
        assert "NODE_TOKEN_FILE" in str(error)
        assert "secret" not in str(error)


def test_programs_of_jobs_do_not_get_the_workers_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_TOKEN_FILE", "/run/secrets/node_token")
    assert "POWERMEAN_NODE_TOKEN_FILE" not in without_secrets()
