"""Stands in for the vLLM process: answers /health on its socket file until told otherwise.

`fake_vllm.py SOCKET MODE`: `serve`; `mute` never listens; `crash` ends at once with a reason; the name of a
folder to write its calls into (`calls`), where a file `hang` or `fail` names a path that it does not answer,
or refuses with the file's second line. A child that sleeps plays the engine process.
"""

import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        time.sleep(600)

    def address_string(self) -> str:
        return "peer"

    def log_message(self, *_args: object) -> None:
        pass


class _Scripted(_Handler):
    """Takes all calls at once, but for what the folder's files say."""

    folder: Path

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"max_model_len": 64}]})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{path} {body.decode() or '{}'}\n")
        if self._told("hang")[:1] == [path]:
            time.sleep(600)
        fail = self._told("fail")
        if fail[:1] == [path]:
            self._answer(500, {"error": fail[1]})
        else:
            self._answer(200, {})

    def _told(self, name: str) -> list[str]:
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text().splitlines()
        return []

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


def main(path: str, mode: str) -> None:
    if mode == "crash":
        sys.exit("ValueError: the key/value cache does not fit the memory")
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    if mode == "mute":
        time.sleep(600)
    if mode != "serve":
        _Scripted.folder = Path(mode)
    _Server(path, _Handler if mode == "serve" else _Scripted).serve_forever()  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
