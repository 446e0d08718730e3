"""What a server tells of the queue: one plan for all who ask at once, and what changed at once."""

from sqlalchemy import event

from server.cluster.queue_view import QueueView
from tests.support.service_driver import ServiceDriver


def test_one_plan_answers_all_who_ask_until_something_changes(service: ServiceDriver):
    view = QueueView(service.database, service.settings)
    statements: list[str] = []
    event.listen(service.database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    first = service.queued(name="first")
    assert list(view.waiting()) == [first]
    assert statements
    statements.clear()
    assert list(view.waiting()) == [first]
    assert statements == []
    second = service.queued(name="second")
    assert list(view.waiting()) == [first, second]
