"""`make test`: two runs of pytest, of which neither hides what the other found."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.run_tests import combined

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

def test_beside(): pass

@pytest.mark.slow
def test_slow_beside(): pass

@pytest.mark.long
def test_for_make_long(): raise AssertionError

@pytest.mark.alone
def test_alone(): assert FAILS != "alone"

@pytest.mark.alone
def test_skipped(): pytest.skip("no such engine")

def test_last(): assert FAILS != "shared"
"""


@pytest.mark.parametrize(
    ("statuses", "status"),
    [([0, 0], 0), ([0, 5], 0), ([5, 0], 0), ([5, 5], 5), ([1, 0], 1), ([0, 1], 1), ([5, 2], 2), ([1, 2], 1)],
)
def test_a_run_without_tests_fails_only_if_both_have_none(statuses: list[int], status: int) -> None:
    assert combined(statuses) == status


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["shared", "alone"])
def test_both_runs_are_made_whatever_fails(tmp_path: Path, fails: str) -> None:
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests/conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(f"FAILS = {fails!r}{TESTS}")
    done = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "tools/run_tests.py", "-c", REPOSITORY / "pyproject.toml"),
            *(
                "--rootdir",
                tmp_path,
                "--junitxml",
                tmp_path / "report.xml",
                "-p",
                "no:cacheprovider",
                tmp_path,
            ),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no such engine" in done.stdout
    assert _names(tmp_path / "report.xml") == ["test_beside", "test_last", "test_slow_beside"]
    assert _names(tmp_path / "report-alone.xml") == ["test_alone", "test_skipped"]


def _names(report: Path) -> list[str]:
    return sorted(str(case.get("name")) for case in ElementTree.parse(report).iter("testcase"))
