"""The embedded Redis runs as it was told to, wherever its folder is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from powermean.children import end, start
from powermean.cli import redis_server
from powermean.cli.embedded import free_port
from powermean.cli.redis_server import RedisServerError

PASSWORD = 'a "b" \\ #c'
DEADLINE_S = 10.0


@contextmanager
def running(config: Path) -> Iterator[None]:
    process = start([str(redis_server.valkey_program()), "-"], {}, config.with_name("log"), given=config)
    try:
        yield
    finally:
        end(process, 5.0)


def checked(port: int, password: str) -> None:
    """Check it as soon as it listens."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return redis_server.check(port, password)
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "b[1]", "what?a", '50% "off" \\x # *\n'])
def test_it_works_in_any_folder_on_loopback_and_with_its_password(tmp_path: Path, name: str) -> None:
    folder, port = tmp_path / name, free_port()
    folder.mkdir()
    redis_server.write_config(folder / "redis.conf", port, PASSWORD, folder)
    with running(folder / "redis.conf"):
        checked(port, PASSWORD)
        with redis.Redis(port=port, password=PASSWORD) as client:
            assert client.config_get("dir")["dir"] == str(folder)
    assert (folder / "redis.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bind", "password", "wrong"),
    [
        ("bind 127.0.0.1 127.0.0.2", "requirepass secret", "listens on 127.0.0.1 127.0.0.2"),
        ("", "requirepass secret", "listens on"),
        ("bind 127.0.0.1", "", "without a password"),
        ("bind 127.0.0.1", "requirepass other", "another program's"),
    ],
)
def test_one_that_runs_otherwise_is_refused(tmp_path: Path, bind: str, password: str, wrong: str) -> None:
    port = free_port()
    (tmp_path / "redis.conf").write_text(f"{bind}\n{password}\nport {port}\nsave ''\n")
    with running(tmp_path / "redis.conf"), pytest.raises(RedisServerError, match=wrong):
        checked(port, "secret")
