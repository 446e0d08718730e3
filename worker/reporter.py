"""The files between the trainer and its supervisor: records to post, the phase, orders.

Records are written completely before they get their name, so a crash leaves none half-written. They hold none
of the job's secrets.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from powermean.contracts.attempts import (
    CheckpointCommit,
    CheckpointRecord,
    Finish,
    FinishRecord,
    MetricsRecord,
    MetricsReport,
    Order,
    SpoolRecord,
    TrajectoriesRecord,
)
from powermean.contracts.metrics import MetricRow
from powermean.contracts.trajectories import TrajectoryBatch
from worker.attempt_dir import AttemptDir, write_whole
from worker.redaction import own_redactor

log = logging.getLogger(__name__)

DETAIL_S = 2.0
_ROWS_PER_RECORD = 20_000


def tell_rank_end(attempt: AttemptDir, rank: int, end: Finish) -> None:
    """How a rank other than 0 failed, for its own node. Rank 0 records it too, but may be on another one."""
    with suppress(OSError):
        attempt.write_last(attempt.rank_file(rank), own_redactor().text(end.model_dump_json()))


class Reporter:
    """Writes the attempt's spool. One process per attempt writes it."""

    def __init__(self, folder: Path) -> None:
        self._attempt = AttemptDir(folder)
        self._redactor = own_redactor()
        self._attempt.spool.mkdir(parents=True, exist_ok=True)
        written = [int(path.stem) for path in self._attempt.spooled()]
        self._numbers = itertools.count(max(written, default=0) + 1)
        self._telling = Lock()
        self._phase, self._told = "", 0.0

    def metrics(self, rows: Sequence[MetricRow]) -> None:
        for start in range(0, len(rows), _ROWS_PER_RECORD):
            part = tuple(rows[start : start + _ROWS_PER_RECORD])
            self._write(MetricsRecord(body=MetricsReport(rows=part)))

    def trajectories(self, batch: TrajectoryBatch) -> None:
        self._write(TrajectoriesRecord(body=batch))

    def checkpoint(self, commit: CheckpointCommit) -> None:
        self._write(CheckpointRecord(body=commit))

    def finish(self, finish: Finish) -> None:
        """The last record: there is room for it even on a full disk."""
        self._attempt.write_last(self._next(), self._text(FinishRecord(body=finish)))

    def phase(self, text: str) -> None:
        """Say what the trainer is doing, for people; at most 80 characters. It is also logged.

        The thread that samples ahead may call this too.
        """
        log.info(text)
        with self._telling:
            self._phase = self._redactor.text(text)
            self._attempt.write_phase(self._phase)

    def detail(self, text: str) -> None:
        """How far the present phase is: told now and then, since heartbeats read it no more often."""
        with self._telling:
            if time.monotonic() - self._told >= DETAIL_S:
                self._told = time.monotonic()
                self._attempt.write_phase(self._redactor.text(f"{self._phase}, {text}"))

    def order(self) -> Order:
        """The supervisor's order."""
        return self._attempt.order()

    def _write(self, record: SpoolRecord) -> None:
        write_whole(self._next(), self._text(record))

    def _text(self, record: SpoolRecord) -> str:
        return self._redactor.text(record.model_dump_json())

    def _next(self) -> Path:
        return self._attempt.spool / f"{next(self._numbers):08d}.json"
