"""A server as a supervisor sees it: answers heartbeats, keeps what is posted, and can be away or refuse."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class NodeServer:
    """What the supervisor told, in order of arrival: (kind, body)."""

    order: str = "continue"
    status: dict[str, int] = field(default_factory=dict)  # kind -> error status
    posts: list[tuple[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)  # of the heartbeats
    ran_s: list[float] = field(default_factory=list)  # as they say
    code: str = "refused"  # of the errors
    nodes: tuple[str, ...] = ()  # of the attempt, if it has several
    reports: dict[int, Any] = field(default_factory=dict)  # what these said of themselves, by node_rank
    _server: ThreadingHTTPServer | None = None
    _port: int = 0

    def start(self) -> None:
        """On the same port each time: it may have been away."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kind = self.path.rpartition("/")[2]
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = outer.answer(kind, body, self.headers["Authorization"])
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def answer(self, kind: str, body: Any, authorization: str) -> tuple[int, Any]:
        self.tokens.append(authorization)
        if status := self.status.get(kind):
            code = "fenced" if status == 409 else self.code
            return status, {"error": {"code": code, "message": f"{kind} refused"}}
        if kind == "heartbeat":
            self.phases.append(body["phase"])
            self.ran_s.append(body["ran_s"])
            self.reports[body["node_rank"]] = body["member"]
            members = [
                {"node_rank": rank, "node_id": name, "report": self.reports.get(rank)}
                for rank, name in enumerate(self.nodes)
            ]
            return 200, {"order": self.order, "token": f"token-{len(self.tokens)}", "members": members}
        self.posts.append((kind, body))
        if kind == "finish" and body["outcome"] == "failed" and self.nodes:
            self.status = dict.fromkeys(("heartbeat", "logs"), 409)  # for the other nodes
        return 200, {}

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.posts if kind != "logs"]

    @property
    def finish(self) -> Any:
        return next((body for kind, body in self.posts if kind == "finish"), None)
