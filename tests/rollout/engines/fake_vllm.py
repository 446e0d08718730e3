"""Stands in for the vLLM process: answers /health on its socket file until told otherwise.

`fake_vllm.py SOCKET MODE`: `serve`; `mute` never listens; `crash` ends at once with a reason. A child that
sleeps plays the engine process.
"""

import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


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
    _Server(path, _Handler).serve_forever()  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
