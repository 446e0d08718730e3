"""Tells the server how an attempt has ended."""

from collections.abc import Callable
from dataclasses import replace

from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.attempts import Finish
from powermean.node_client import AttemptClient
from worker.attempt.limits import AbandonedError
from worker.attempt.outcome import Ended, finish
from worker.attempt.shipper import Shipper
from worker.attempt.supervisor_log import say

LOG_S = 5.0  # for the log's last line


def tell(
    client: AttemptClient, shipper: Shipper, ended: Ended, node_rank: int, pause: Callable[[], None]
) -> None:
    """Send what is left of spool and log, then the end. `pause` comes between tries, and may raise.

    Raises AbandonedError where the server refuses the end.
    """
    shipper.halt()
    while not shipper.ship() and shipper.refused is None:
        pause()
    end = finish(replace(ended, record=shipper.finish, refused=shipper.refused))
    end = end.model_copy(update={"node_rank": node_rank})
    close_log(shipper, end)
    while not _post(client, end):
        pause()
    say(f"{end.outcome}" + (f": {end.error.code}: {end.error.message}" if end.error else ""))


def close_log(shipper: Shipper, end: Finish) -> None:
    """Let the log end with why the attempt failed: programs that are ended for that log errors, too."""
    if end.outcome == "failed" and end.error is not None:
        shipper.close_log(f"the attempt failed: {end.error.code}: {end.error.message}", LOG_S)


def tell_gone(client: AttemptClient, end: Finish) -> None:
    """Say once that nothing of the attempt is left here; the node's reports say it, too."""
    try:
        client.finish(end)
    except (ApiError, ServerUnreachableError) as failure:
        say(f"the end was not told: {failure}")


def _post(client: AttemptClient, end: Finish) -> bool:
    try:
        client.finish(end)
    except ServerUnreachableError:
        return False
    except ApiError as error:
        if not error.retryable:
            raise AbandonedError(str(error)) from error
        return False
    return True
