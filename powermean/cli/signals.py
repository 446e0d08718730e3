"""Signals that end a command in order, as Ctrl-C does."""

import signal
from types import FrameType


class EndedBySignalError(Exception):
    """SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def raise_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise EndedBySignalError; one that `nohup` made us ignore stays ignored."""

    def ended(number: int, _frame: FrameType | None) -> None:
        raise EndedBySignalError(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ended)
