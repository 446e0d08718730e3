"""Whom the audit log names."""

from datetime import UTC, datetime

import pytest

from powermean.contracts.audit import AuditEvent


@pytest.mark.parametrize(
    ("who", "fields"),
    [
        ("Ada", {"actor": "person-1", "actor_name": "Ada"}),
        ("person-1", {"actor": "person-1"}),
        ("on the server", {"request": "python -m server archive-audit"}),
        ("on the server", {"request": "powermean restore"}),
        ("stranger", {"outcome": "refused", "address": "192.0.2.1"}),
        ("stranger", {"outcome": "refused"}),
        ("several", {"outcome": "refused", "verb": "other", "request": "other", "count": 9}),
    ],
)
def test_nobody_but_a_command_was_on_the_server(who: str, fields: dict[str, object]) -> None:
    of_all = {"at": datetime.now(UTC), "verb": "job.read", "request": "GET /v1/jobs", "outcome": "allowed"}
    assert AuditEvent.model_validate(of_all | fields).who == who
