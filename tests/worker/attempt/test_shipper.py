"""Logs are sent as text, whatever bytes they hold."""

import pytest

from worker.attempt.shipper import clean, complete


def test_a_log_that_is_not_text_keeps_its_offsets() -> None:
    raw = b"ok \xff\xfe \xc3\xa9 end"
    assert clean(raw) == "ok ?? é end"
    assert len(clean(raw).encode()) == len(raw)


@pytest.mark.parametrize(
    ("raw", "whole"),
    [
        (b"abc", b"abc"),
        (b"ab\xc3", b"ab"),
        ("é".encode(), "é".encode()),
        (b"a\xf0\x9f\x98", b"a"),
        (b"", b""),
    ],
)
def test_half_a_character_waits_for_its_rest(raw: bytes, whole: bytes) -> None:
    assert complete(raw) == whole
