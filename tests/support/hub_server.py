"""A model hub on loopback: the calls of the Hugging Face Hub that fetch and push a model, over real HTTP.

Anybody may read what a repository holds; the files of a gated one are only for the holder of its token, who
alone may push. Files come within the commit: the real hub has large ones uploaded before, to its own storage.
"""

import base64
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
    private: bool | None = False  # None: there is no such repository until one is made
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, token

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
                hub.asked.append((self.command, path, given))
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == "POST":
                    status, headers, body = hub.take(path, given, sent)
                else:
                    status, headers, body = hub.answer(path, given)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
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
        if path == "/api/whoami-v2":
            return _json({"name": "somebody"}) if token and token == self.token else (401, {}, b"")
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            if self.private is None:
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            facts = {"sha": COMMIT, "siblings": [], "gated": bool(self.token), "private": self.private}
            return _json({"id": self.name} | facts)
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

    def take(self, path: str, token: str | None, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer to an upload, which only the holder of the token may make: all files in one commit."""
        api = f"/api/models/{self.name}"
        if token is None or token != self.token:
            return 401, {}, b""
        if path == "/api/repos/create":
            if self.private is None:
                self.private = json.loads(sent)["visibility"] == "private"
            return _json({"url": f"{self.url}/{self.name}"})
        if path == f"{api}/preupload/main":
            paths = [one["path"] for one in json.loads(sent)["files"]]
            return _json(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        if path == f"{api}/commit/main":
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    target = self.folder / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            return _json({"commitUrl": f"{self.url}/{self.name}/commit/{COMMIT}", "commitOid": COMMIT})
        return 404, {}, b""

    def _entry(self, file: Path) -> dict[str, object]:
        body = file.read_bytes()
        return {"type": "file", "path": file.name, "size": len(body), "oid": _sha(body)}


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _sha(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
