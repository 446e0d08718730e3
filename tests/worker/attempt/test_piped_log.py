"""What comes through the pipe, and how it is written."""

import os
from pathlib import Path

from worker.attempt.piped_log import PIECE, PipedLog


def piped(log: Path, *pieces: bytes, prefix: str = "[rank 3] ", secrets: dict[str, str] | None = None) -> str:
    pipe = PipedLog(log, secrets or {}, prefix)
    with pipe.writing() as end:
        for piece in pieces:
            os.write(end, piece)
    pipe.finish()
    return log.read_text()


def test_lines_have_the_prefix_however_they_come(tmp_path: Path) -> None:
    assert piped(tmp_path / "log", b"one\ntw", b"o\n\nthree") == (
        "[rank 3] one\n[rank 3] two\n[rank 3] \n[rank 3] three\n"
    )


def test_a_line_without_an_end_is_not_kept_for_ever(tmp_path: Path) -> None:
    pipe = PipedLog(tmp_path / "log", {}, "[rank 3] ")
    assert pipe._by_lines(b"x" * PIECE) == b"[rank 3] " + b"x" * PIECE + b"\n"
    assert pipe._by_lines(b"y\n") == b"[rank 3] y\n"


def test_secrets_go_also_where_lines_have_a_prefix(tmp_path: Path) -> None:
    text = piped(tmp_path / "log", b"it is hf_01234", b"56789\n", secrets={"HF_TOKEN": "hf_0123456789"})
    assert text == "[rank 3] it is ***\n"
