"""An API server for Jobs, pods and Secrets: it holds requests to Kubernetes' published schemas.

What controllers would do, tests say: `run`, `wait`, `end`. Of a Job it removes what the Job owns.
"""

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

VERSIONS = ("1.29", "1.37")
TOKEN = "token-of-the-account"
ROOTS = {
    "/apis/batch/v1/namespaces/team/jobs": "Job",
    "/api/v1/namespaces/team/pods": "Pod",
    "/api/v1/namespaces/team/secrets": "Secret",
}


@dataclass
class Kubernetes:
    """The cluster. `replies` are given instead of the next answers; None leaves a request without one."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    replies: list[tuple[int, Any] | None] = field(default_factory=list)
    quota: bool = False  # no Job more
    requests: list[tuple[str, str]] = field(default_factory=list)
    dribble_s: float = 0.0  # between the bytes of an answer
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                reply = outer.reply(self.command, self.path, self.headers.get("Authorization"), body)
                if reply is None:
                    time.sleep(1.0)
                    return
                status, said = reply
                raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                for place in range(len(raw)) if outer.dribble_s else ():
                    time.sleep(outer.dribble_s)
                    self.wfile.write(raw[place : place + 1])
                if not outer.dribble_s:
                    self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that did not wait."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, method: str, path: str, authorization: str | None, body: Any) -> tuple[int, Any] | None:
        self.requests.append((method, path))
        if self.replies:
            return self.replies.pop(0)
        if authorization != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized", "Unauthorized")
        parts = urlsplit(path)
        root = next((one for one in ROOTS if parts.path == one or parts.path.startswith(f"{one}/")), None)
        if root is None:
            return _status(404, "NotFound", f"the server could not find {parts.path}")
        kind, name = ROOTS[root], parts.path.removeprefix(root).strip("/")
        if method == "GET" and not name:
            return 200, self._listed(kind, parse_qs(parts.query))
        if method == "POST" and kind == "Job" and self.quota:
            return _status(
                403, "Forbidden", f'jobs.batch "{body["metadata"]["name"]}" is forbidden: exceeded quota'
            )
        if method == "POST":
            return self._created(kind, body)
        if (kind, name) not in self.objects:
            return _status(404, "NotFound", f'{kind.lower()}s "{name}" not found')
        if method == "PUT":
            return self._stored(kind, body, self.objects[kind, name]["metadata"]["uid"])
        if method == "DELETE" and kind == "Secret":
            return 200, self.objects.pop((kind, name))
        if method == "DELETE":
            self._deleted(kind, name, body)
        return 200, self.objects[kind, name]

    def _listed(self, kind: str, query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
        items = [
            one
            for (of, _), one in self.objects.items()
            if of == kind and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        return {"kind": f"{kind}List", "metadata": {"resourceVersion": "7"}, "items": items}

    def _created(self, kind: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if (kind, name) in self.objects:
            return _status(409, "AlreadyExists", f'{kind.lower()}s "{name}" already exists')
        return self._stored(kind, body, f"uid-{next(self._numbers)}")

    def _stored(self, kind: str, body: dict[str, Any], uid: str) -> tuple[int, Any]:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(body, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                return _status(422, "Invalid", f"{version}: {error.message}")
        assert body["kind"] == kind
        body["metadata"] |= {"uid": uid, "creationTimestamp": "2026-11-27T12:00:00Z", "namespace": "team"}
        self.objects[kind, body["metadata"]["name"]] = body
        return 201, body

    def _deleted(self, kind: str, name: str, options: dict[str, Any]) -> None:
        # kubernetes-validate does not find the schema of DeleteOptions.
        assert options == {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        self.objects[kind, name]["metadata"]["deletionTimestamp"] = "2026-11-27T12:30:00Z"

    def job(self, name: str) -> dict[str, Any]:
        return self.objects["Job", name]

    def pod(self, name: str, phase: str = "Pending", **status: Any) -> dict[str, Any]:
        """What the Job's controller and the kubelet make of a Job's template."""
        template = self.job(name)["spec"]["template"]
        pod = {
            "metadata": template["metadata"] | {"name": f"{name}-x7k2p", "uid": f"pod-of-{name}"},
            "spec": template["spec"],
            "status": {"phase": phase, **status},
        }
        self.objects["Pod", pod["metadata"]["name"]] = pod
        return pod

    def run(self, name: str) -> None:
        self.job(name)["status"] = {"active": 1, "ready": 1, "startTime": "2026-11-27T12:00:10Z"}
        self.pod(name, "Running")

    def end(self, name: str, condition: str, reason: str = "", message: str = "", **pod: Any) -> None:
        said = {"type": condition, "status": "True", "reason": reason, "message": message}
        self.job(name)["status"] = {"startTime": "2026-11-27T12:00:10Z", "conditions": [said]}
        self.pod(name, "Succeeded" if condition == "Complete" else "Failed", **pod)

    def collect(self, name: str) -> None:
        """The Job is gone, and what it owns."""
        uid = self.objects.pop(("Job", name))["metadata"]["uid"]
        self.objects.pop(("Pod", f"{name}-x7k2p"), None)
        for key, one in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences", [])):
                del self.objects[key]


def _status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
    }
