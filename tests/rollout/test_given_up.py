"""A shared service ends when its vLLM is given up, and says why in its last line."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from rollout.__main__ import end_when_given_up


@pytest.mark.parametrize(
    ("why", "said"),
    [("it died\nits last line", "error: vLLM was given up: it died | its last line\n"), (None, "")],
)
def test_it_ends_with_the_reason_or_goes_on(
    capsys: pytest.CaptureFixture[str], why: str | None, said: str
) -> None:
    server: Any = SimpleNamespace(given_up=False, should_exit=False)
    end_when_given_up(Mock(wait_given_up=Mock(return_value=why)), server)
    assert (server.given_up, server.should_exit) == (why is not None, why is not None)
    assert capsys.readouterr().err == said
