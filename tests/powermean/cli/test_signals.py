"""Signals end a command in order; one that was ignored at its start stays so."""

import os
import signal
from collections.abc import Iterator

import pytest

from powermean.cli.signals import EndedBySignalError, raise_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_and_a_polite_kill_end_it() -> None:
    raise_on_signals()
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(EndedBySignalError) as ended:
            os.kill(os.getpid(), number)
        assert ended.value.number == number


def test_nohup_is_honoured() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does before it starts the program
    raise_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    with pytest.raises(EndedBySignalError):
        os.kill(os.getpid(), signal.SIGTERM)
