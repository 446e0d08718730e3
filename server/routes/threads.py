"""How routes use threads."""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from starlette.concurrency import run_in_threadpool


def in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine that runs it in a thread, unless it is one.

    Of an endpoint that is a plain function FastAPI also checks the answer in a thread. That takes a second
    switch between threads, which costs more than the check, and frees nothing: pydantic keeps the
    interpreter's lock.
    """
    if iscoroutinefunction(endpoint):
        return endpoint

    @wraps(endpoint)
    async def in_thread(**values: Any) -> Any:
        return await run_in_threadpool(endpoint, **values)

    return in_thread
