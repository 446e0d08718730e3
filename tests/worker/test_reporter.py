"""Records appear whole, in order, under names that are never used twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from powermean.contracts.attempts import Finish
from tests.support.small_disk import fill, small_disk
from trainer.recording.rows import metric
from worker.attempt_dir import BALLAST_BYTES, AttemptDir, read_record
from worker.reporter import Reporter


def test_records_are_numbered_in_order_and_readable(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    reporter.metrics([metric(1, "reward", 0.5)])
    reporter.finish(Finish(outcome="cancelled"))
    spooled = AttemptDir(tmp_path).spooled()
    assert [path.name for path in spooled] == ["00000001.json", "00000002.json"]
    assert [read_record(path).kind for path in spooled] == ["metrics", "finish"]


def test_the_end_of_a_run_is_told_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node", 4 * BALLAST_BYTES) as disk:
        attempt = AttemptDir(disk)
        attempt.ballast.hold()
        reporter = Reporter(disk)
        filling = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            reporter.metrics([metric(1, "reward", 0.5)])
        reporter.finish(Finish(outcome="cancelled"))
        assert [read_record(path).kind for path in attempt.spooled()] == ["finish"]
        filling.unlink()
        assert not [path for path in attempt.spool.iterdir() if path.name.startswith(".")]


def test_numbers_go_on_after_what_is_still_there(tmp_path: Path) -> None:
    Reporter(tmp_path).metrics([metric(1, "reward", 0.5)])
    Reporter(tmp_path).metrics([metric(2, "reward", 0.5)])
    assert [path.stem for path in AttemptDir(tmp_path).spooled()] == ["00000001", "00000002"]


@pytest.mark.slow
def test_many_rows_are_cut_into_records_the_server_takes(tmp_path: Path) -> None:
    Reporter(tmp_path).metrics([metric(step, "reward", 0.5) for step in range(20_001)])
    bodies = [read_record(path).body for path in AttemptDir(tmp_path).spooled()]
    assert [len(body.rows) for body in bodies] == [20_000, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cancel", "cancel"),
        ("checkpoint_and_exit\n", "checkpoint_and_exit"),
        ("", "continue"),
        ("?", "continue"),
    ],
)
def test_orders(tmp_path: Path, text: str, expected: str) -> None:
    reporter = Reporter(tmp_path)
    assert reporter.order() == "continue"
    (tmp_path / "order").write_text(text)
    assert reporter.order() == expected


def test_the_phase_is_for_people_and_short(tmp_path: Path) -> None:
    Reporter(tmp_path).phase("x" * 200)
    assert (tmp_path / "phase").read_text() == "x" * 80


def test_two_threads_may_tell_at_once(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reporter.phase, ["sampling", "updating"] * 100))
    assert (tmp_path / "phase").read_text() in ("sampling", "updating")


def test_details_follow_the_phase_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, reporter = tmp_path / "phase", Reporter(tmp_path)
    reporter.phase("step 1 of 9: updating, 2 of 4")
    reporter.detail("micro-batch 1 of 8")
    assert told.read_text() == "step 1 of 9: updating, 2 of 4, micro-batch 1 of 8"
    reporter.detail("micro-batch 2 of 8")
    assert told.read_text().endswith("micro-batch 1 of 8")
    monkeypatch.setattr("worker.reporter.DETAIL_S", 0.0)
    reporter.detail("micro-batch 3 of 8")
    assert told.read_text().endswith("2 of 4, micro-batch 3 of 8")
    reporter.phase("step 1 of 9: updating, 3 of 4")
    assert told.read_text() == "step 1 of 9: updating, 3 of 4"
