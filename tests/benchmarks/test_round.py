"""benchmarks/round.py, tree_attention.py and update_step.py run in toy sizes, so that they can't rot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tree_attention
from round import Compared, goals, pairs_table
from round_processes import Turn, resident
from round_work import worked_on

from powermean.processes import marked

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def compared() -> Compared:
    ours = [Turn(seconds, 1.0, {"tokens": 10.0}) for seconds in (1.0, 9.0, 2.0)]
    theirs = [Turn(seconds, 3.0, {"tokens": 20.0}) for seconds in (8.0, 7.0, 9.0)]
    return Compared(ours, theirs, (3 << 30, 4 << 30))


def test_pairs_and_their_medians_are_in_the_table() -> None:
    text = pairs_table("A round", compared()).text().splitlines()
    assert [line.split("|")[1:5] for line in text[4:8]] == [
        [" 1      ", "   1.00 ", "  8.00 ", "       8.00 "],
        [" 2      ", "   9.00 ", "  7.00 ", "       0.78 "],
        [" 3      ", "   2.00 ", "  9.00 ", "       4.50 "],
        [" median ", "   2.00 ", "  8.00 ", "       4.00 "],
    ]
    assert text[8:] == ["ours: tokens 10", "TRL: tokens 20"]


def test_goals_are_reached_or_not() -> None:
    assert [line.split(":")[0] for line in goals(compared(), 4.0, 0.75)] == ["reached", "reached"]
    assert [line.split(":")[0] for line in goals(compared(), 4.1, 0.74)] == ["not reached", "not reached"]


def test_rows_are_distinct_by_prompt_and_completion() -> None:
    assert worked_on("aab", [[1], [1], [1, 2]]) == {"tokens": 4.0, "distinct": 2 / 3}


def test_what_processes_share_counts_once() -> None:
    alone = resident([os.getpid()])
    assert alone > 0
    assert resident([os.getpid(), os.getpid()]) < 2 * alone
    assert resident([]) == 0


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_tiny_round_prints_its_tables_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, BENCHMARKS / "round.py", "--tiny", "--pairs", "1"]
    done = subprocess.run(
        [*command, "--data-dir", tmp_path / "data"],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "POWERMEAN_TEST_RUN": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for title in ("A round of the main job", "prompt 4, completion 4:", "prompt 4, completion 16:"):
        assert title in done.stdout
    assert done.stdout.count("reached: ") == 6
    assert list((tmp_path / "tmp").glob("powermean-*")) == []
    assert marked("POWERMEAN_TEST_RUN", str(tmp_path)) == set()


@pytest.mark.slow
def test_tree_attention_runs_in_tiny_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tree_attention.py", "--tiny"])
    tree_attention.main()
    assert "| nodes |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.integration
def test_update_step_runs_in_tiny_form(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "update_step.py", "--tiny", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--data-dir", tmp_path], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "  mean" in done.stdout
