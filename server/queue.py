"""The Celery application as the server uses it: tasks by name, ids only, and no waiting.

Celery only wakes. The database is the truth, so nothing here needs results, retries or acknowledgements.
"""

from typing import Protocol

# Celery imports these with its first message, while requests wait.
import celery.app.amqp
import celery.events.receiver  # noqa: F401
import kombu.transport.redis  # noqa: F401
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError

from powermean.errors import PowermeanError
from server.settings import Settings


class BrokerDownError(PowermeanError):
    """The broker did not accept the message."""


class Sender(Protocol):
    """Sends task messages."""

    def send(self, task: str, queue: str, subject: str, expires_s: float) -> None:
        """Send `task(subject)` to `queue`; a worker drops it after `expires_s` seconds.

        Raises:
            BrokerDownError: it could not be sent.
        """
        ...


def celery_app(settings: Settings) -> Celery:
    """A Celery application on the settings' Redis: JSON only, no results, nothing waits forever."""
    app = Celery("powermean", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_publish_retry=False,
        broker_connection_timeout=5,
        broker_transport_options={
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "visibility_timeout": 600,
            "health_check_interval": 10,
            "max_retries": 1,
        },
    )
    return app


class CelerySender:
    """Sends over Celery's broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, task: str, queue: str, subject: str, expires_s: float) -> None:
        """See Sender."""
        try:
            self._app.send_task(task, args=[subject], queue=queue, expires=expires_s, ignore_result=True)
        except (BrokerError, OSError) as error:
            raise BrokerDownError(str(error)) from error
