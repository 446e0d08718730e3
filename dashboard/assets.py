"""Style sheets and scripts: our own from static/, third-party ones from node_modules through a fixed map."""

import hashlib
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
# Address below /static/vendor/ -> file that `npm ci` in dashboard/ installs.
VENDOR: dict[str, Path] = {
    "echarts.js": _HERE / "node_modules/echarts/dist/echarts.esm.min.mjs",
    "htmx.js": _HERE / "node_modules/htmx.org/dist/htmx.min.js",
}
INSTALL = "npm ci --prefix dashboard"
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@lru_cache(maxsize=256)
def _version(file: Path, changed_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _versioned(address: str, file: Path) -> str:
    return f"{address}?v={_version(file, file.stat().st_mtime_ns)}"


def address(name: str) -> str:
    """Address of one of our static files. It changes with the content, so browsers may cache it."""
    return _versioned(f"/static/{name}", STATIC / name)


def vendor(name: str) -> str | None:
    """Address of a third-party script, or None if it is not installed."""
    file = VENDOR[name]
    return _versioned(f"/static/vendor/{name}", file) if file.is_file() else None


@lru_cache(maxsize=1)
def _own() -> frozenset[str]:
    """Paths below static/. Looked up, so that no path from outside reaches the file system."""
    return frozenset(file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*") if file.is_file())


def _find(path: str) -> Path | None:
    if path.startswith("vendor/"):
        file = VENDOR.get(path.removeprefix("vendor/"))
    else:
        file = STATIC / path if path in _own() else None
    return file if file is not None and file.is_file() and file.suffix in _TYPES else None


async def static_file(request: Request) -> Response:
    """GET /static/{path}. Versioned addresses are cached for good, plain ones are revalidated."""
    file = _find(request.path_params["path"])
    if file is None:
        return PlainTextResponse("no such file", status_code=404)
    cache = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
    response = FileResponse(file, media_type=_TYPES[file.suffix], headers={"Cache-Control": cache})
    etag = f'"{_version(file, file.stat().st_mtime_ns)}"'
    if request.headers.get("If-None-Match") == etag:
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": cache})
    response.headers["ETag"] = etag
    return response
