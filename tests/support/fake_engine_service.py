"""A rollout service of the shared kind, as far as its keeper sees it: `engine_stand_in.py OPTIONS` (JSON).

It serves /health and /metrics, writes the ready file, and logs its start. Options: port, folder, how
("serve", "refuse", "crash", "unready").
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

options = json.loads(sys.argv[1])
folder = Path(options["folder"])
state = {
    "ready": options["how"] != "unready",
    "engine": "vllm",
    "model": "tiny",
    "version": 0,
    "attempt": 0,
    "max_model_len": 64,
    "adapters": {"slots": 2, "taken": 1, "max_rank": 8},
}


def write(body: dict[str, Any]) -> None:
    part = folder / ".engine.json.part"
    part.write_text(json.dumps(body))
    part.rename(folder / "engine.json")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "Bearer seen"
        body = b"powermean_rollout_requests 3.0\n"
        status = 200
        if self.path == "/health":
            body = json.dumps(state).encode()
            status = 200 if state["ready"] else 503
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


if options["how"] == "crash":
    print("no memory left", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if options["how"] == "refuse":
    write({"error": {"code": "vllm_missing", "message": "vLLM is not installed"}})
    sys.exit(1)
server = HTTPServer(("127.0.0.1", options["port"]), Handler)
print("serving", flush=True)
write({"url": f"http://127.0.0.1:{options['port']}"})
server.serve_forever()
