"""The threads of the pools."""

from urllib.parse import urlsplit

from server.cluster.loops import Loop
from server.db.session import Database
from server.pools.pools_file import PoolsFile, PoolsFileError, read_pools_file
from server.pools.turn import Pools, PoolTurn, Undeclared
from server.settings import Settings, is_loopback

UNDECLARED_PAUSE_S = 30.0


def pool_loops(settings: Settings, database: Database, holder: str, public_pem: str) -> tuple[Loop, ...]:
    """One for each declared pool, and one for what is left of others. Raises PoolsFileError."""
    shared = declared_pools(settings, database, holder, public_pem)
    return (
        Loop("undeclared pools", Undeclared(shared).turn, UNDECLARED_PAUSE_S),
        *(Loop(f"pool {one.name}", PoolTurn(shared, one).turn, one.poll_s) for one in shared.pools),
    )


def declared_pools(settings: Settings, database: Database, holder: str, public_pem: str) -> Pools:
    """What the pools file says, if there is one. Raises PoolsFileError."""
    if settings.pools_file is None:
        return Pools(database, settings, holder, (), {}, settings.redis_url)
    declared = read_pools_file(settings.pools_file)
    for place, pool in enumerate(declared.pools):
        if pool.time_limit_s is not None and pool.time_limit_s <= pool.drain_s + settings.min_run_s:
            raise PoolsFileError(
                f"{settings.pools_file}: pools.{place}.time_limit_s: is too short: a job runs for at least "
                f"POWERMEAN_MIN_RUN_S ({settings.min_run_s:g}), and drain_s is {pool.drain_s:g}"
            )
    url = server_url(settings, declared)
    if declared.pools and not declared.redis_url and _is_here(settings.redis_url) and not _is_here(url):
        raise PoolsFileError(
            f"{settings.pools_file}: redis_url is missing: POWERMEAN_REDIS_URL is on the server's own "
            "machine; set it to the address at which nodes reach Redis"
        )
    environment = {
        "POWERMEAN_SERVER_URL": url,
        "POWERMEAN_ARTEFACTS_URL": settings.artefacts_url,
        "POWERMEAN_ATTEMPT_PUBLIC_KEY_TEXT": public_pem,
    }
    redis_url = declared.redis_url or settings.redis_url
    return Pools(database, settings, holder, declared.pools, environment, redis_url)


def server_url(settings: Settings, declared: PoolsFile) -> str:
    """Where nodes reach the server. Raises PoolsFileError if nobody says so."""
    if declared.server_url or settings.public_url:
        return declared.server_url or settings.public_url or ""
    if not settings.port or urlsplit(f"//{settings.host}").hostname in ("0.0.0.0", "::", None):  # noqa: S104
        raise PoolsFileError(
            f"{settings.pools_file}: server_url is missing: set it, or POWERMEAN_PUBLIC_URL, to the address "
            "at which nodes reach the server"
        )
    return f"http://{settings.host}:{settings.port}"


def _is_here(url: str) -> bool:
    """Whether it leads to the machine of whoever uses it; so does a socket, which has no host."""
    return is_loopback(urlsplit(url).hostname or "localhost")
