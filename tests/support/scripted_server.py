"""A loopback HTTP server whose answers a test writes down beforehand."""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    cut: bool = False  # break the connection off after the body, in mid-stream
    lost: bool = False  # break it off instead


@dataclass
class ScriptedServer:
    """Answers by `METHOD /path`; the last one stays. Requests are kept: (line, headers, body)."""

    answers: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def on(self, request: str, *answers: Answer) -> None:
        self.answers[request].extend(answers)

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((f"{self.command} {self.path}", dict(self.headers), body))
                waiting = outer.answers[f"{self.command} {self.path.partition('?')[0]}"]
                answer = waiting.popleft() if len(waiting) > 1 else waiting[0]
                if answer.lost:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                length = len(answer.body) + (1000 if answer.cut else 0)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = answer.cut

            def do_POST(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                self.do_GET()

            def do_PATCH(self) -> None:
                self.do_GET()

            def do_DELETE(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
