"""Who looks at a page: no page offers what its viewer may not do. The API decides all the same."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from powermean.contracts.api import JobSummary
from powermean.contracts.identity import Me, Project, Role
from powermean.contracts.names import session_cookie

Page = Callable[[Request], Awaitable[Response]]
REMEMBERED_S = 365 * 86400


@dataclass(frozen=True)
class Viewer:
    """A signed-in person, the projects that they see, and the one that they chose to look at (None: all)."""

    me: Me
    projects: tuple[Project, ...]
    chosen: str | None

    @property
    def several(self) -> bool:
        return len(self.projects) > 1

    @property
    def administers(self) -> bool:
        return any(project.role == "admin" for project in self.projects)

    @property
    def reads_people(self) -> bool:
        return any(project.role in ("admin", "auditor") for project in self.projects)

    @property
    def submits_to(self) -> tuple[str, ...]:
        """Where their jobs may go."""
        return tuple(project.name for project in self.projects if self.submits(project.name))

    def role(self, project: str) -> Role | None:
        """What they are in it; an auditor who is also its member is a member."""
        found = next((one.role for one in self.projects if one.name == project), None)
        return self.me.allowed.get(project, found) if found == "auditor" else found

    def submits(self, project: str) -> bool:
        return self.role(project) in ("member", "maintainer", "admin")

    def maintains(self, project: str) -> bool:
        return self.role(project) in ("maintainer", "admin")

    def changes(self, job: JobSummary) -> bool:
        """Members change what they submitted."""
        mine = self.role(job.project) == "member" and job.created_by == self.me.id
        return mine or self.maintains(job.project)


async def viewer_of(request: Request) -> Viewer:
    """Asked once for each request. Raises ApiError (401) for somebody who is not signed in."""
    if not hasattr(request.state, "viewer"):
        async with api.client(request) as client:
            me, found = await asyncio.gather(client.me(), client.projects())
        wanted = request.query_params.get("project", request.cookies.get(project_cookie(request)))
        several = len(found.items) > 1
        chosen = wanted if several and wanted in {one.name for one in found.items} else None
        request.state.viewer = Viewer(me, found.items, chosen)
    return cast(Viewer, request.state.viewer)


def viewed(page: Page) -> Page:
    """The page, for a known viewer; strangers are sent to sign in before their forms are read.

    Parts that htmx asks for find out for themselves if they need to.
    """

    @wraps(page)
    async def with_viewer(request: Request) -> Response:
        if request.method != "GET" or not is_fragment(request):
            await viewer_of(request)
        return await page(request)

    return with_viewer


def project_cookie(request: Request) -> str:
    """The cookie with the chosen project, at this service's port."""
    return session_cookie(request.headers.get("host", "")).replace("session", "project")


def remember(request: Request, answer: Response, project: str | None) -> None:
    """Other lists and forms start with this project too."""
    root = request.scope.get("state", {}).get("root") or "/"
    secure = request.url.scheme == "https"
    answer.set_cookie(
        project_cookie(request),
        project or "",
        max_age=REMEMBERED_S,
        path=root,
        secure=secure,
        httponly=True,
        samesite="lax",
    )
