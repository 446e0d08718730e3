"""The rollout service over HTTP: one engine, for one job or for the adapters of several."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Event

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from powermean.contracts.api import ErrorBody, ErrorResponse, FieldError
from powermean.contracts.rollout import (
    ChannelRequest,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishMethod,
    PublishRequest,
)
from powermean.tokens import AttemptClaims, Verb
from rollout.counting import SUFFIX, CompletionCount
from rollout.engine import CancelledError, Engine, EngineError, EngineHost, check_method
from rollout.guard import CLAIMS, Guard, error_response
from rollout.metrics import EngineMetrics
from rollout.request_queue import RequestQueue, Result
from rollout.running_jobs import read_running_jobs
from rollout.settings import RolloutSettings, is_loopback

CLIENT_GONE = 499  # nobody reads it; it only separates such requests in the metrics

router = APIRouter()


def create_app(host: EngineHost, settings: RolloutSettings, public_key_pem: str) -> FastAPI:
    """The service around an engine. If the engine takes one call at a time, weights wait for completions."""
    turns = RequestQueue(host.calls_at_once, settings.max_waiting)
    control = turns if host.calls_at_once == 1 else RequestQueue(1, settings.max_waiting)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        turns.close()
        control.close()

    app = FastAPI(
        title="powermean rollout", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None
    )
    app.state.host = host
    app.state.turns = turns
    app.state.control = control
    app.state.metrics = EngineMetrics()
    own = settings.ready_file if settings.job_id is not None else None  # of an attempt, in its folder
    app.state.count = CompletionCount(own and own.with_suffix(SUFFIX))
    app.state.on_loopback = is_loopback(settings.host)
    app.include_router(router)
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(CancelledError, _cancelled)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(
        Guard,
        hosts=settings.hosts,
        public_key_pem=public_key_pem,
        max_body=settings.max_body,
        current=lambda claims: _is_current(settings, claims),
    )
    return app


def _is_current(settings: RolloutSettings, claims: AttemptClaims) -> bool:
    """Whether nothing but its age speaks against a token; the fence is checked with every call.

    An attempt's own engine ends with it. A shared one has the list of the jobs that it serves, which comes
    from the server by way of its node.
    """
    if settings.job_id is not None:
        return True
    try:
        return settings.jobs_file is not None and claims.job_id in read_running_jobs(settings.jobs_file)
    except EngineError:
        return False


@router.post("/v1/generate")
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Complete prompts."""
    engine = _engine_for(request, Verb.GENERATE)
    count: CompletionCount = request.app.state.count

    def work(cancelled: Event) -> GenerateResponse:
        started = time.monotonic()
        with count.of(len(body.prompts) * body.n) as finished:
            response = engine.generate(body, cancelled, finished)
        _metrics(request).generated(body, response, time.monotonic() - started)
        return response

    response = await _in_turn(request, request.app.state.turns, work)
    return Response(response.model_dump_json(), media_type="application/json")


@router.post("/v1/publish")
async def publish(body: PublishRequest, request: Request) -> EngineState:
    """Accept new weights, or an adapter that replaces the job's previous one."""
    engine = _publishing_engine(request, body, body.method)
    started = time.monotonic()
    await _control(request, lambda: engine.publish(body))
    _metrics(request).published(time.monotonic() - started)
    return engine.state()


@router.post("/v1/hold")
async def hold(body: HoldRequest, request: Request) -> EngineState:
    """Finish what is being completed, then complete nothing until the next publish."""
    engine = _publishing_engine(request, body, None)
    await _control(request, lambda: engine.hold(body))
    return engine.state()


@router.delete("/v1/adapter")
async def drop_adapter(request: Request) -> EngineState:
    """Drop the job's adapter, so that another job can have its slot."""
    engine = _engine_for(request, Verb.PUBLISH)
    await _control(request, engine.drop_adapter)
    return engine.state()


@router.post("/v1/channel")
async def channel(body: ChannelRequest, request: Request) -> EngineState:
    """Connect to the trainer, to receive its weights directly from then on."""
    engine = _publishing_engine(request, body, body.method)
    if request.app.state.on_loopback and body.host is not None and not is_loopback(body.host):
        raise EngineError(
            422,
            "invalid",
            f"an engine that listens on loopback can't connect to a trainer at {body.host}",
            remedy="Listen at a loopback address.",
            path="host",
        )
    await _control(request, lambda: engine.open_channel(body))
    return engine.state()


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether the engine is ready; with a token, its whole state. 503 if it is not ready."""
    claims: AttemptClaims | None = request.scope.get("state", {}).get(CLAIMS)
    state = _host(request).state(claims.job_id if claims else None)
    content = state.model_dump(mode="json") if claims else {"ready": state.ready}
    return JSONResponse(content, 200 if state.ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    engine = _engine_for(request, Verb.GENERATE)
    own = await run_in_threadpool(_host(request).metrics)
    found: State = request.app.state
    requests = found.turns.taken + (found.control.taken if found.control is not found.turns else 0)
    return _metrics(request).response(engine.state(), requests, own)


def _engine_for(request: Request, verb: Verb) -> Engine:
    """The engine, if the request's token allows it. Raises EngineError (forbidden, other_job, fenced)."""
    claims = _claims(request)
    if not claims.allows(verb):
        raise EngineError(403, "forbidden", f"the token does not allow {verb}")
    return _host(request).serving(claims.job_id, claims.attempt)


async def _control(request: Request, work: Callable[[], None]) -> None:
    await _in_turn(request, request.app.state.control, lambda _cancelled: work())


def _publishing_engine(
    request: Request, body: PublishRequest | HoldRequest | ChannelRequest, method: PublishMethod | None
) -> Engine:
    """The engine, if the token belongs to the attempt in the body and the engine accepts the method."""
    engine, claims = _engine_for(request, Verb.PUBLISH), _claims(request)
    if (claims.job_id, claims.attempt) != (body.job_id, body.attempt):
        raise EngineError(
            403, "forbidden", f"the token belongs to attempt {claims.attempt_id}", path="attempt"
        )
    if method is not None:
        check_method(method, engine.state())
    return engine


async def _in_turn(request: Request, turns: RequestQueue, work: Callable[[Event], Result]) -> Result:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return await turns.run(work, gone)


def _host(request: Request) -> EngineHost:
    host: EngineHost = request.app.state.host
    return host


def _claims(request: Request) -> AttemptClaims:
    claims: AttemptClaims = request.scope["state"][CLAIMS]
    return claims


def _metrics(request: Request) -> EngineMetrics:
    found: EngineMetrics = request.app.state.metrics
    return found


def _engine_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EngineError)
    return error_response(error)


def _cancelled(_request: Request, _error: Exception) -> JSONResponse:
    return error_response(EngineError(CLIENT_GONE, "cancelled", "the client gave up the request"))


def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = tuple(
        FieldError(path=".".join(map(str, one["loc"][1:])) or "body", message=one["msg"])
        for one in error.errors()[:20]
    )
    body = ErrorBody(code="invalid", message=f"{fields[0].path}: {fields[0].message}", fields=fields)
    return JSONResponse(ErrorResponse(error=body).model_dump(mode="json"), 422)


def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(
        error.status_code, "bad_request"
    )
    return error_response(EngineError(error.status_code, code, str(error.detail)))


def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    """Answer an unexpected error; the traceback goes to the log."""
    kind = type(error).__name__
    return error_response(
        EngineError(500, "engine_error", f"{kind} in the engine", remedy="See the attempt's log.")
    )
