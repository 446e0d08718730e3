"""The stand-in for the REST API as an application: signing in, people, the cluster; with the jobs' routes."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from powermean.contracts.api import (
    Dataset,
    ErrorBody,
    ErrorResponse,
    FieldError,
    NodeDrain,
    NodeList,
    NodeSamples,
    NodeView,
)
from powermean.contracts.engines import EngineServiceList
from powermean.contracts.identity import Me, Project, ProjectList
from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.names import session_cookie
from powermean.contracts.pools import PoolList
from powermean.contracts.priorities import PriorityClass, PriorityClassList
from powermean.contracts.sharing import ProjectQuota, Queue, QuotaList, Usage
from powermean.contracts.signin import SessionView, SignInMethod, SignInWays
from powermean.contracts.storage import ProjectStorage, Retention
from tests.support.fake_api import CODE, KEY, NOW, FakeApi, RefusalError, signed_in
from tests.support.fake_api_jobs import add_jobs, add_records, add_replays


def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusalError)
    return JSONResponse(ErrorResponse(error=error.body).model_dump(), status_code=error.status)


def create_api(api: FakeApi) -> FastAPI:
    """The REST API over `api`."""
    app = FastAPI()
    app.add_exception_handler(RefusalError, _refusal)

    @app.get("/healthz")  # forms ask before they are sent
    def health() -> dict[str, str]:
        return {"status": "ok"}

    _sessions(app)
    _people(app, api)
    add_jobs(app, api)
    add_records(app, api)
    add_replays(app, api)
    _cluster(app, api)
    _storage(app, api)
    _sharing(app, api)
    return app


def _sharing(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/queue")
    def queue(request: Request, job: str | None = None) -> Queue:
        signed_in(request)
        found = tuple(one for one in api.queue.items if job in (None, one.id))
        if job is not None and not found:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"job {job} is not in the queue"))
        return api.queue.model_copy(update={"items": found})

    @app.get("/v1/pools")
    def pools(request: Request) -> PoolList:
        signed_in(request)
        return PoolList(items=tuple(api.pools))

    @app.get("/v1/quotas")
    def quotas(request: Request) -> QuotaList:
        signed_in(request)
        return api.quotas

    @app.put("/v1/projects/{project}/quota")
    async def change_quota(request: Request, project: str) -> ProjectQuota:
        signed_in(request)
        (quota,) = (one for one in api.quotas.items if one.project == project)
        wanted = await request.json()
        if wanted["version"] != quota.version:
            now = FieldError(path="version", message=f"is now {quota.version}")
            raise RefusalError(409, ErrorBody(code="conflict", message="changed meanwhile", fields=(now,)))
        api.changed_quotas.append(wanted)
        return quota

    @app.get("/v1/cluster/lanes")
    def lanes(request: Request) -> ClusterLanes:
        signed_in(request)
        return api.lanes

    @app.get("/v1/usage")
    def usage(request: Request) -> Usage:
        signed_in(request)
        return api.usage


def _storage(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/projects/{project}/storage")
    def storage(request: Request, project: str) -> ProjectStorage:
        signed_in(request)
        return api.storage

    @app.get("/v1/projects/{project}/retention")
    def retention(request: Request, project: str) -> Retention:
        signed_in(request)
        return api.retention

    @app.get("/v1/datasets/{dataset_id}")
    def dataset(request: Request, dataset_id: str) -> Dataset:
        signed_in(request)
        return Dataset(
            id=dataset_id,
            name="sums",
            rows=1,
            fields=(),
            sha256="0" * 64,
            size=1,
            project="default",
            created_at=NOW,
        )

    @app.delete("/v1/{path:path}", status_code=204)
    def delete(request: Request, path: str) -> None:
        signed_in(request)
        if api.refuses_deletion:
            raise RefusalError(409, ErrorBody(code="conflict", message=api.refuses_deletion))
        api.deleted.append(path)


def _sessions(app: FastAPI) -> None:
    @app.post("/v1/sessions", status_code=201)
    async def open_session(request: Request, response: Response) -> SessionView:
        proof = await request.json()
        if proof not in ({"key": KEY}, {"code": CODE}):
            body = ErrorBody(code="unauthenticated", message="this key is not known", remedy="Ask for a key.")
            raise RefusalError(401, body)
        response.set_cookie(session_cookie(request.headers["host"]), "open", httponly=True, samesite="strict")
        method: SignInMethod = "key" if "key" in proof else "code"
        return SessionView(name="Ada", role="member", method=method, expires_at=NOW)

    @app.get("/v1/sign-in")
    def sign_in_ways() -> SignInWays:
        return SignInWays(oidc=None, passwords=False)

    @app.delete("/v1/sessions", status_code=204)
    def close_session(request: Request, response: Response) -> None:
        signed_in(request)
        response.delete_cookie(session_cookie(request.headers["host"]))


def _people(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/me")
    def get_me(request: Request) -> Me:
        signed_in(request)
        return api.me

    @app.get("/v1/projects/{name}")
    def get_project(request: Request, name: str) -> Project:
        signed_in(request)
        found = next((one for one in api.projects if one.name == name), None)
        if found is None:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"no project {name}"))
        return found

    @app.get("/v1/projects")
    def list_projects(request: Request) -> ProjectList:
        signed_in(request)
        return ProjectList(items=tuple(api.projects))


def _cluster(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/priorities")
    def priorities(request: Request) -> PriorityClassList:
        signed_in(request)
        ranks = (("high", 100, "maintainer"), ("normal", 0, "member"), ("low", -100, "member"))
        return PriorityClassList(
            items=tuple(PriorityClass(name=name, value=value, role=role) for name, value, role in ranks)
        )

    @app.get("/v1/nodes")
    def nodes(request: Request) -> NodeList:
        signed_in(request)
        return NodeList(items=tuple(api.nodes))

    @app.get("/v1/nodes/{node_id}")
    def get_node(request: Request, node_id: str) -> NodeView:
        signed_in(request)
        return next(node for node in api.nodes if node.id == node_id)

    @app.get("/v1/nodes/{node_id}/samples")
    def samples(node_id: str) -> NodeSamples:
        return NodeSamples(every_s=10, items=tuple(api.samples))

    @app.post("/v1/nodes/{node_id}/{what}")
    def change_node(request: Request, node_id: str, what: str, asked: NodeDrain | None = None) -> NodeView:
        signed_in(request)
        if asked is not None and asked.at is not None and asked.at < NOW:
            raise RefusalError(422, ErrorBody(code="invalid", message="at: is past"))
        api.closings.append((node_id, what, asked))
        return next(node for node in api.nodes if node.id == node_id)

    @app.get("/v1/engines")
    def engines(request: Request) -> EngineServiceList:
        signed_in(request)
        return EngineServiceList(items=tuple(api.engines))
