"""Commands against scripted answers."""

from collections.abc import Iterator

import pytest

from tests.support.scripted_server import ScriptedServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server whose answers the test writes down, at the address that commands talk to."""
    scripted = ScriptedServer()
    scripted.start()
    monkeypatch.setenv("POWERMEAN_URL", scripted.url)
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_key")
    yield scripted
    scripted.stop()
