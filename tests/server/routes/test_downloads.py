"""Which bytes a Range header asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.routes.downloads import RangeNotSatisfiableError, Span, requested_span


@given(header=st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,3}", fullmatch=True), size=st.integers(0, 500))
def test_a_requested_span_lies_within_the_file(header, size):
    try:
        span = requested_span(header, size)
    except RangeNotSatisfiableError:
        return
    assert span is None or 0 <= span.start < span.end <= size


@pytest.mark.parametrize("header", ["", "bytes=-", "bytes=5-2", "bytes=1-2,4-5", "items=1-2", "bytes=a-b"])
def test_what_is_no_single_range_is_answered_whole(header):
    assert requested_span(header, 10) is None
    assert requested_span("bytes=1-2", 10) == Span(1, 3)
