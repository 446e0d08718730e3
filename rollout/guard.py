"""Access control of the service, before any request body is read."""

from collections.abc import Callable
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from powermean.contracts.api import ErrorBody, ErrorResponse
from powermean.tokens import AttemptClaims, TokenError, TokenExpiredError, verify_attempt_token
from rollout.engine import EngineError

CLAIMS = "attempt_claims"  # key in the request's state
_OPEN_PATHS = frozenset({"/health"})


class Guard:
    """Checks the Host header (against DNS rebinding), the attempt token and the body's size.

    A token that has expired still counts for what is `current`, so that trainers go on while the server,
    which renews their tokens, can't be reached (docs/adr/0010). At any age it says whose state /health shows.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        public_key_pem: str,
        max_body: int,
        current: Callable[[AttemptClaims], bool],
    ) -> None:
        self._app = app
        self._current = current
        self._hosts = hosts
        self._public_key_pem = public_key_pem
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_token(scope, headers)
            self._check_size(headers)
        except EngineError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if name not in self._hosts:
            raise EngineError(
                400,
                "unknown_host",
                f"this service does not accept the host name {name!r}",
                remedy="Start it with --allowed-host NAME.",
            )

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            if scope["path"] in _OPEN_PATHS:
                return
            raise _unauthenticated("this needs an attempt token", "Send it as `Authorization: Bearer TOKEN`.")
        try:
            claims = self._claims(token.strip(), open_path=scope["path"] in _OPEN_PATHS)
        except TokenExpiredError as error:
            raise _unauthenticated(str(error), "Use the token from the last heartbeat's reply.") from error
        except TokenError as error:
            raise _unauthenticated(str(error), "Use the token from the attempt's claim.") from error
        scope.setdefault("state", {})[CLAIMS] = claims

    def _claims(self, token: str, *, open_path: bool) -> AttemptClaims:
        """Raises TokenError."""
        try:
            return verify_attempt_token(token, self._public_key_pem)
        except TokenExpiredError:
            claims = verify_attempt_token(token, self._public_key_pem, even_expired=True)
            if open_path or self._current(claims):
                return claims
            raise

    def _check_size(self, headers: Headers) -> None:
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._max_body:
            raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        """`receive` for a body of undeclared size."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:  # while reading a body FastAPI only lets its own exceptions through
                raise HTTPException(413, str(self._too_large()))
            return message

        return limited

    def _too_large(self) -> EngineError:
        return EngineError(
            413, "too_large", f"the body exceeds {self._max_body} bytes", remedy="Split the request."
        )


def error_response(error: EngineError) -> JSONResponse:
    """An error answer in the project's usual shape."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
    message = f"{error.path}: {error}" if error.path else str(error)
    body = ErrorBody(code=error.code, message=message, remedy=error.remedy)
    return JSONResponse(ErrorResponse(error=body).model_dump(mode="json"), error.status, headers)


def _unauthenticated(message: str, remedy: str) -> EngineError:
    return EngineError(401, "unauthenticated", message, remedy=remedy)
