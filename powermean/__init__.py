"""Train language models by group-based reinforcement learning on a self-hosted service.

>>> from powermean import Client
>>> client = Client()  # POWERMEAN_URL with POWERMEAN_API_KEY, or the service that `powermean up` runs
>>> job = client.create_job("examples/arithmetic-smollm2.yaml")  # or the spec itself, as a dict
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from powermean.async_client import AsyncClient as AsyncClient
    from powermean.calls import ApiError as ApiError
    from powermean.calls import ServerUnreachableError as ServerUnreachableError
    from powermean.client import Client as Client
    from powermean.errors import PowermeanError as PowermeanError

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "powermean.async_client",
    "Client": "powermean.client",
    "ApiError": "powermean.calls",
    "PowermeanError": "powermean.errors",
    "ServerUnreachableError": "powermean.calls",
}
__all__ = ["ApiError", "AsyncClient", "Client", "PowermeanError", "ServerUnreachableError"]


def __getattr__(name: str) -> Any:
    """Loaded on first use: importing a contract must not cost an HTTP library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'powermean' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
