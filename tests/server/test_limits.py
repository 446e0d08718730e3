"""Rates: whose requests count together, in this process and in a Redis that servers share."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits.storage import MemoryStorage
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from powermean.children import end, start
from powermean.cli import redis_server
from powermean.cli.embedded import free_port
from server.errors import TooManyRequestsError
from server.identity.throttle import Throttle
from server.limits import REDIS_PAUSE_S, RateLimits
from server.settings import Settings

PASSWORD = "a password of this test"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The library reads time.time."""
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


def settings(url: str = "redis://127.0.0.1:1/0", database: str = "sqlite:///x.db", **rates: str) -> Settings:
    return Settings(redis_url=url, database_url=database, **rates)  # type: ignore[arg-type]


def spent(limits: RateLimits, who: str = "person-1", most: int = 100) -> int:
    """How many requests are let through in a row, and how long the next one is to wait."""
    for number in range(most):
        try:
            limits.count("person", who)
        except TooManyRequestsError:
            return number
    return most


def test_so_many_requests_in_a_minute_and_then_a_wait(clock: Clock) -> None:
    limits = RateLimits(settings(rate_person="5/minute"))
    assert spent(limits) == 5
    with pytest.raises(TooManyRequestsError, match="with this person's keys") as refused:
        limits.count("person", "person-1")
    assert 1 <= refused.value.retry_after_s <= 60
    assert refused.value.status == 429
    assert spent(limits, "person-2") == 5
    limits.count("node", "person-1")
    limits.count("stranger", "person-1")
    clock.now += refused.value.retry_after_s
    assert spent(limits) == 5


def test_waiting_as_long_as_told_is_enough(clock: Clock) -> None:
    limits = RateLimits(settings(rate_person="5/minute"))
    for _ in range(10):
        spent(limits)
        with pytest.raises(TooManyRequestsError) as refused:
            limits.count("person", "person-1")
        clock.now += refused.value.retry_after_s
        limits.count("person", "person-1")


@pytest.mark.parametrize("rate", ["", "many", "5", "5/fortnight", "-1/minute"])
def test_a_rate_that_is_none_is_refused_at_the_start(rate: str) -> None:
    with pytest.raises(ValidationError, match="must look like 120/minute"):
        settings(rate_person=rate)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real server of the protocol, the embedded service's own."""
    port = free_port()
    config = tmp_path / "redis.conf"
    redis_server.write_config(config, port, PASSWORD, tmp_path)
    process = start([str(redis_server.valkey_program()), "-"], {}, tmp_path / "log", given=config)
    try:
        _until_it_answers(port)
        yield f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/0"
    finally:
        end(process, 5.0)


def _until_it_answers(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            Redis("127.0.0.1", port, password=PASSWORD).ping()
        except RedisConnectionError:
            assert time.monotonic() < until
            time.sleep(0.02)
        else:
            return


POSTGRES = "postgresql+psycopg://u@h/n"


def test_servers_of_one_database_count_together(redis_url: str) -> None:
    here, there = (RateLimits(settings(redis_url, POSTGRES, rate_person="7/hour")) for _ in range(2))
    for number in range(6):
        (here, there)[number % 2].count("person", "person-1")
    assert spent(there) == 1
    with pytest.raises(TooManyRequestsError) as refused:
        here.count("person", "person-1")
    assert 1 <= refused.value.retry_after_s <= 3600
    with Redis.from_url(redis_url) as redis:
        keys = list(redis.scan_iter("powermean:rates:*"))
        assert keys
        assert all(0 < redis.ttl(key) <= 3600 for key in keys)  # nothing stays


def test_guesses_at_an_account_are_counted_over_all_servers(redis_url: str) -> None:
    here, there = (Throttle(settings(redis_url, POSTGRES)) for _ in range(2))
    for number in range(10):
        (here, there)[number % 2].count("account", "ada@example.org")
    for server in (here, there):
        with pytest.raises(TooManyRequestsError) as refused:
            server.count("account", "ada@example.org")
        assert 1 <= refused.value.retry_after_s <= 300
        server.count("account", "bob@example.org")
    there.forgive("account", "ada@example.org")
    here.count("account", "ada@example.org")
    with Redis.from_url(redis_url) as redis:
        keys = [key.decode() for key in redis.scan_iter("powermean:rates:*")]
    assert keys
    assert not [key for key in keys if "example.org" in key]  # Redis learns no addresses


def test_on_sqlite_redis_is_not_asked(redis_url: str) -> None:
    assert spent(RateLimits(settings(redis_url, rate_person="7/hour"))) == 7
    with Redis.from_url(redis_url) as redis:
        assert list(redis.scan_iter()) == []


def test_without_redis_each_server_counts_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    moment = Clock()
    limits = RateLimits(settings(database=POSTGRES, rate_person="7/hour"), clock=moment)
    assert spent(limits) == 7
    assert len(caplog.records) == 1  # Redis is left alone for a while
    moment.now += REDIS_PAUSE_S
    spent(limits)
    assert len(caplog.records) == 2


def test_requests_start_no_threads_and_leave_no_counters(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RateLimits(settings(rate_person="5/minute"))
    until_quiet = time.monotonic() + 5.0  # the library's own thread, from its start
    while any(isinstance(one, threading.Timer) for one in threading.enumerate()):
        assert time.monotonic() < until_quiet
        time.sleep(0.01)
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: pytest.fail("a thread is started"))
    for number in range(50):
        limits.count("person", f"person-{number}")
    clock.now += 61
    limits.count("person", "person-0")
    kept = limits._counts._here.storage
    assert isinstance(kept, MemoryStorage)
    assert list(kept.storage.values()) == [1]
