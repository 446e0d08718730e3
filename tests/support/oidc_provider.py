"""An OIDC provider process: `oidc-provider-mock`, made to insist on PKCE and able to lie on request.

    python -m tests.support.oidc_provider PORT

The package stores no code challenge, so a WSGI layer around it does: a code is exchanged only with the
verifier of the challenge that it was asked for with. PUT /lies sets the ID token that it gives out.
"""

import base64
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class InsistsOnPkce:
    """Remembers the challenge of each code, and refuses a verifier that does not fit it."""

    def __init__(self, flask: Any) -> None:
        self._flask = flask
        self._app = flask.wsgi_app
        self._challenges: dict[str, str] = {}
        self._lies: dict[str, Any] = {}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        query = parse_qs(environ.get("QUERY_STRING", ""))
        if environ["PATH_INFO"] == "/oauth2/authorize":
            if query.get("code_challenge_method") != ["S256"]:
                start_response("400 Bad Request", [("Content-Type", "text/plain")])
                return [b"no PKCE"]

            def remember(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                back = parse_qs(urlsplit(dict(headers).get("Location", "")).query)
                if "code" in back:
                    self._challenges[back["code"][0]] = query["code_challenge"][0]
                return start_response(status, headers, *rest)

            return self._app(environ, remember)
        if environ["PATH_INFO"] == "/lies":
            self._lies = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("204 No Content", [])
            return []
        if environ["PATH_INFO"] == "/oauth2/token":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            form = parse_qs(body.decode())
            verifier = form.get("code_verifier", [""])[0]
            digest = (
                base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
            )
            if self._challenges.get(form.get("code", [""])[0]) != digest:
                start_response("400 Bad Request", [("Content-Type", "application/json")])
                return [b'{"error": "invalid_grant"}']
            if self._lies:
                return self._lied(environ, start_response)
        return self._app(environ, start_response)

    def _lied(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The provider's answer with another ID token: one that is given, or claims signed by its own key."""
        kept: list[Any] = []
        answer = json.loads(b"".join(self._app(environ, lambda *head: kept.extend(head))))
        if "claims" in self._lies:
            from oidc_provider_mock._storage import storage

            with self._flask.test_request_context():
                self._flask.preprocess_request()
                key = RSAKey.import_key(storage.jwk.as_dict(is_private=True))
            answer["id_token"] = jwt.encode({"alg": "RS256"}, self._lies["claims"], key)
        else:
            answer["id_token"] = self._lies["id_token"]
        body = json.dumps(answer).encode()
        headers = [one for one in kept[1] if one[0] != "Content-Length"]
        start_response(kept[0], headers)
        return [body]


@dataclass
class OidcProvider:
    """A provider that runs, and the browser of somebody who has an account there."""

    issuer: str

    def add(self, subject: str, **claims: Any) -> None:
        """An account, or new claims of one."""
        httpx.put(f"{self.issuer}/users/{subject}", json=claims).raise_for_status()

    def lie(self, **lies: Any) -> None:
        """Give out this `id_token` from now on, or one with these `claims`."""
        httpx.put(f"{self.issuer}/lies", json=lies).raise_for_status()

    def tell_the_truth(self) -> None:
        self.lie()

    def agree(self, url: str, subject: str) -> str:
        """The person signs in at the provider; the address that it sends the browser back to."""
        answer = httpx.post(url, data={"sub": subject})
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]


@contextmanager
def oidc_provider() -> Iterator[OidcProvider]:
    """A provider process on loopback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.oidc_provider"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield OidcProvider(f"http://localhost:{port}")
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from oidc_provider_mock import app
    from werkzeug.serving import make_server

    server = make_server("localhost", 0, InsistsOnPkce(app(require_nonce=True)), threaded=True)
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
