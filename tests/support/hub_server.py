"""A model hub on loopback: the calls of the Hugging Face Hub that fetching a model makes, over real HTTP.

Anybody may read what a repository holds; the files of a gated one are only for the holder of its token.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class HubServer:
    """Serves the files of `folder` as the repository `name`, at one commit."""

    name: str
    folder: Path
    token: str | None = None  # that its files demand; None: anybody may have them
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, token

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
                hub.asked.append((self.command, path, given))
                status, headers, body = hub.answer(path, given)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        api, files = f"/api/models/{self.name}", f"/{self.name}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return _json({"id": self.name, "sha": COMMIT, "siblings": [], "gated": bool(self.token)})
        if path in (f"{api}/tree/main", f"{api}/tree/{COMMIT}"):
            return _json([self._entry(file) for file in sorted(self.folder.iterdir())])
        revision, _, name = path.removeprefix(files).partition("/")
        file = self.folder / name
        if not path.startswith(files) or revision not in ("main", COMMIT) or not file.is_file():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.token is not None and token != self.token:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        body = file.read_bytes()
        return 200, {"ETag": f'"{_sha(body)}"', "X-Repo-Commit": COMMIT}, body

    def _entry(self, file: Path) -> dict[str, object]:
        body = file.read_bytes()
        return {"type": "file", "path": file.name, "size": len(body), "oid": _sha(body)}


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _sha(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
