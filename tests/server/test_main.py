"""The server's process, apart from what it serves."""

import gc

import pytest

from server.__main__ import GARBAGE_AFTER, keep_from_collector


@pytest.mark.slow
def test_the_collector_leaves_alone_what_lives_as_long_as_the_server():
    before = gc.get_threshold()
    tracked = len(gc.get_objects())
    try:
        keep_from_collector()
        assert gc.get_freeze_count() > tracked / 2
        assert len(gc.get_objects()) < tracked / 2
        assert gc.get_threshold()[0] == GARBAGE_AFTER
    finally:
        gc.set_threshold(*before)  # what is frozen may stay so: see tests/conftest.py
