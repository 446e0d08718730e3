"""What commands print: nothing is cut, nothing acts on the terminal, everything can be JSON."""

import ast
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from powermean.cli import terminal as printing
from powermean.cli.terminal import say, say_json, say_table, shown
from powermean.contracts.api import JobState
from tests.support.sample_jobs import job
from tests.support.terminal import terminal

LONG = "pmpo-smollm2-135m-lr5e-6-group8-beta0.01-clip0.4-seed3-long-name-ablation-run-17"
COLUMNS = ("id", "name", "note", "p")
ROWS = [("job-01m8cw1xddkf6dyg", LONG, "first of many", "0.98765"), ("job-2", "b", "", "-1.25e-07")]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),  # the same in one byte
        ("over\rwrite\b\x7f", r"over\rwrite\b\u007f"),
        ("a\u202eb\u200b\u2028\U000e0041", r"a\u202eb\u200b\u2028\udb40\udc41"),  # hides or reorders text
        ("half \ud800", r"half \ud800"),
        ("run [/abl] [b]naïve[/b] :smile: 日本　語 €", "run [/abl] [b]naïve[/b] :smile: 日本　語 €"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_what_would_not_be_seen_is_written_out(text: str, seen: str) -> None:
    assert shown(text) == seen


@given(some.text())
def test_json_stays_the_same_json(text: str) -> None:
    written = shown(json.dumps(text, ensure_ascii=False), keep="")
    assert json.loads(written) == text
    assert written.isascii() or not any(c in written for c in "\x1b\x9b\x7f\u202e")


def test_a_cell_is_one_line_of_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(("name", "state"), [("run [/abl]\nfinished \x1b[31m", "[bold]failed")])
    assert capsys.readouterr().out.splitlines()[1] == r"run [/abl]\nfinished \u001b[31m  [bold]failed"


def test_a_pipe_gets_every_cell_whole_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    say_table(COLUMNS, ROWS, wrap=("name",), spare=("note",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [" ".join(row).split() for row in ROWS]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_a_terminal_cuts_no_number_and_no_name(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, columns)
    say_table(COLUMNS, ROWS, wrap=("name",), spare=("note",))
    assert "0.98765" in screen.text
    assert "-1.25e-07" in screen.text
    assert ROWS[0][0] in screen.text
    words = [line[22:].split("  ")[0] for line in screen.text.splitlines()[1:]]
    assert "".join(words).startswith(LONG)
    assert ("first of many" in screen.text) == (columns >= 60)
    assert "…" not in screen.text
    if columns >= 60:
        assert max(map(len, screen.text.splitlines())) <= columns


def test_a_terminal_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1m" in table_on(monkeypatch)
    assert "\x1b" not in table_on(monkeypatch, NO_COLOR="1")
    assert "\x1b" not in table_on(monkeypatch, TERM="dumb")


def table_on(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    screen = terminal(monkeypatch, 80, **environment)
    say_table(COLUMNS, ROWS)
    say("done")
    return screen.getvalue()


def test_json_is_the_apis_own_with_nothing_that_acts(capsys: pytest.CaptureFixture[str]) -> None:
    named = job(JobState.FINISHED, phase="\x9b2J é \u202e")
    say_json({"jobs": (named,)})
    out = capsys.readouterr().out
    assert json.loads(out) == {"jobs": [named.model_dump(mode="json", by_alias=True)]}
    assert r"\u009b2J é \u202e" in out


def test_what_an_encoding_lacks_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("é 日 😀")
    say_table(("name",), [("é",)])
    assert raw.getvalue().decode().split("\n")[:3] == [r"\u00e9 \u65e5 \ud83d\ude00", "name", r"\u00e9"]


def test_nothing_is_printed_past_it() -> None:
    """`main` alone prints texts of its own without it: it must not import what answers come from."""
    folder = Path(printing.__file__).parent
    for file in folder.glob("*.py"):
        if file.name in ("terminal.py", "main.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "Console"), f"{file}:{node.lineno}"
                assert not called.startswith("sys.std"), f"{file}:{node.lineno}"
