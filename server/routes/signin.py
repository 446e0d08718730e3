"""Signing in and out: proofs of who somebody is become a session cookie; one's own sessions and password."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Annotated, Literal, TypedDict, cast

from fastapi import APIRouter, Request, Response, Security, status
from sqlalchemy.orm import Session

from powermean.contracts.api import LoginCode
from powermean.contracts.names import session_cookie
from powermean.contracts.signin import (
    OidcProof,
    OidcStart,
    OwnSessionList,
    PasswordChange,
    SessionRequest,
    SessionView,
    SignInWays,
)
from server.audit.journal import note
from server.db.session import Database
from server.errors import ForbiddenError, InvalidInputError, NotFoundError, UnauthenticatedError
from server.identity import accounts, oidc, passwords, people, sessions
from server.identity.callers import Caller
from server.identity.sessions import Browser, Lifetimes, SignedIn
from server.identity.throttle import Throttle
from server.routes.access import KnownCallerRoute, May, browser_cookie
from server.routes.authentication import browsers_own, check_origin, client_address, session_secret
from server.routes.dependencies import (
    RequestDatabase,
    RequestProvider,
    RequestSettings,
    RequestThrottle,
    login_code,
    public_address,
)
from server.settings import Settings

router = APIRouter(prefix="/v1", tags=["identity"], route_class=KnownCallerRoute)

Self = Annotated[Caller, May("self.use")]
CALLBACK = "/login/oidc/callback"  # registered at the provider


class _Cookie(TypedDict):
    """Arguments of Starlette's set_cookie and delete_cookie."""

    path: str
    secure: bool
    httponly: bool
    samesite: Literal["strict"]


@router.post(
    "/login-codes",
    status_code=status.HTTP_201_CREATED,
    summary="Create a sign-in code",
)
def create_login_code(
    caller: Self, request: Request, database: RequestDatabase, settings: RequestSettings
) -> LoginCode:
    """Signs one browser in as yourself, within ten minutes: open `url`."""
    with database.write() as session:
        made = sessions.create_code(session, caller.person_id, caller.key_id)
    return login_code(request, settings, *made)


@router.get("/sign-in", summary="How can one sign in?")
def get_ways(settings: RequestSettings, provider: RequestProvider, database: RequestDatabase) -> SignInWays:
    """For the page that asks. Needs no key."""
    with database.read() as session:
        return SignInWays(
            oidc=settings.oidc_name if provider is not None else None,
            passwords=accounts.has_passwords(session),
        )


@router.post("/sessions/oidc", summary="Start a sign-in at the OIDC provider")
def start_oidc(
    request: Request, settings: RequestSettings, provider: RequestProvider, throttle: RequestThrottle
) -> OidcStart:
    """The browser goes to `url`, and comes back to /login/oidc/callback with a code and `state`."""
    throttle.count("address", client_address(request))
    url, secret = _configured(provider).start(public_address(request, settings, CALLBACK))
    return OidcStart(url=url, secret=secret)


@router.post(
    "/sessions",
    status_code=status.HTTP_201_CREATED,
    summary="Sign a browser in",
)
def open_session(
    proof: SessionRequest,
    request: Request,
    response: Response,
    database: RequestDatabase,
    settings: RequestSettings,
    provider: RequestProvider,
    throttle: RequestThrottle,
) -> SessionView:
    """With a person's key, a one-time code, e-mail address and password, or the OIDC provider's answer.

    The session is a cookie that scripts can't read. A session that the browser had before ends.
    """
    if "origin" in request.headers:
        check_origin(request)
    throttle.count("address", client_address(request))
    identify: Callable[[Session], SignedIn | None]
    if proof.oidc is not None:
        identify = _by_oidc(
            proof.oidc, _configured(provider), public_address(request, settings, CALLBACK), settings
        )
    elif proof.email is not None:
        identify = _by_password(proof.email, cast(str, proof.password), database, throttle)
    elif proof.code is not None:
        identify = partial(sessions.redeem_code, code=proof.code)
    else:
        identify = partial(sessions.redeem_key, secret=cast(str, proof.key))
    with database.write() as session:
        who = identify(session)
        view = _open(session, who, request, response, settings) if who is not None else None
    if view is None:
        raise _no_project()
    return view


@router.delete(
    "/sessions",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Sign out",
    dependencies=[Security(browser_cookie)],
)
def close_session(request: Request, response: Response, database: RequestDatabase) -> None:
    """Ends this browser's session."""
    cookie = session_secret(request)
    if cookie is None:
        raise UnauthenticatedError("there is no browser session to end")
    check_origin(request)
    with database.write() as session:
        person = sessions.close_session(session, cookie)
        if person is not None:
            note(actor=person.id, actor_name=person.name)
    response.delete_cookie(session_cookie(request.headers["host"]), **_cookie_of(request))


@router.get("/me/sessions", summary="List your sessions")
def list_sessions(caller: Self, request: Request, database: RequestDatabase) -> OwnSessionList:
    """The browsers that are signed in as you, the last used first."""
    with database.read() as session:
        found = sessions.list_sessions(session, caller.person_id, browsers_own(request))
    return OwnSessionList(items=tuple(found))


@router.delete(
    "/me/sessions/{session_id}", status_code=status.HTTP_204_NO_CONTENT, summary="End a session of yours"
)
def end_session(session_id: str, caller: Self, database: RequestDatabase) -> None:
    """That browser is signed out."""
    with database.write() as session:
        sessions.end_session(session, caller.person_id, session_id)


@router.put("/me/password", summary="Set your password")
def set_password(
    wanted: PasswordChange,
    caller: Self,
    request: Request,
    response: Response,
    database: RequestDatabase,
    settings: RequestSettings,
    throttle: RequestThrottle,
) -> SessionView:
    """Only from a browser that is signed in. All of your sessions end, and this browser gets a new one."""
    throttle.count("account", caller.person_id)
    opened = _own_session(request, database)
    person = opened.who.person
    accounts.check_own_password(person)
    if opened.who.method != "invitation" and not passwords.is_password(
        person.password_hash, wanted.current or ""
    ):
        raise InvalidInputError.at(
            "current", "is not your password", "Without one, ask an administrator for a link."
        )
    passwords.check_choice(wanted.password, person.name, person.email)
    hashed = passwords.hash_password(wanted.password)
    with database.write() as session:
        who = accounts.set_password(session, person.id, hashed)
        return _open(session, who, request, response, settings)


@router.put("/me/provider", summary="Sign in at the OIDC provider from now on")
def link_provider(
    proof: OidcProof,
    caller: Self,
    request: Request,
    response: Response,
    database: RequestDatabase,
    settings: RequestSettings,
    provider: RequestProvider,
) -> SessionView:
    """Only in a browser that came by an invitation. Your password and all of your sessions end, this browser
    gets a new one, and the table of grants decides about the roles that it names."""
    configured = _configured(provider)
    opened = _own_session(request, database)
    if opened.who.method != "invitation":
        raise ForbiddenError(
            "only an invitation opens the way to this", remedy="Ask an administrator for a link."
        )
    subject = configured.finish(
        public_address(request, settings, CALLBACK), proof.code, proof.state, proof.secret
    )
    allowed = oidc.granted(settings.oidc_grants, subject.claims)
    with database.write() as session:
        holds = timedelta(seconds=settings.oidc_key_s)
        who = accounts.link(session, caller.person_id, subject, allowed, word_holds=holds)
        view = _open(session, who, request, response, settings) if who is not None else None
    if view is None:
        raise _no_project()
    return view


def _own_session(request: Request, database: Database) -> sessions.OpenSession:
    """The browser's session. Raises ForbiddenError for a key, and UnauthenticatedError."""
    secret = browsers_own(request)
    if secret is None:
        raise ForbiddenError("a key can't change how you sign in", remedy="Sign in with a browser.")
    with database.read() as session:
        opened = sessions.find_session(session, secret)
    if opened is None:
        raise UnauthenticatedError("the browser session has ended", remedy="Sign in again at /login.")
    return opened


def _no_project() -> ForbiddenError:
    return ForbiddenError(
        "you have an account here, but no project yet", remedy="Ask an administrator to add you to one."
    )


def _by_password(
    email: str, password: str, database: Database, throttle: Throttle
) -> Callable[[Session], SignedIn]:
    """Takes as long for an address that nobody has, and holds no transaction meanwhile."""
    normal = accounts.normal_email(email)
    throttle.count("account", normal or email)
    with database.read() as session:
        account = accounts.account_at(session, normal)
    right = passwords.is_password(account.password_hash if account is not None else None, password)
    rehashed = None
    if account is not None and right:
        throttle.forgive("account", normal or email)
        if passwords.is_outdated(account.password_hash):
            rehashed = passwords.hash_password(password)
    return partial(accounts.signed_in, account=account, right=right, rehashed=rehashed)


def _by_oidc(
    proof: OidcProof, provider: oidc.Provider, callback: str, settings: Settings
) -> Callable[[Session], SignedIn | None]:
    subject = provider.finish(callback, proof.code, proof.state, proof.secret)
    allowed = oidc.granted(settings.oidc_grants, subject.claims)
    holds = timedelta(seconds=settings.oidc_key_s)
    return partial(accounts.accept, subject=subject, allowed=allowed, word_holds=holds)


def _open(
    session: Session, who: SignedIn, request: Request, response: Response, settings: Settings
) -> SessionView:
    """A session, always with a new secret; whatever the browser had before is over."""
    if (before := session_secret(request)) is not None:
        sessions.close_session(session, before)
    longest = settings.session_s
    if who.method == "oidc":
        longest = min(longest, settings.oidc_session_s)
    lifetimes = Lifetimes(timedelta(seconds=settings.session_idle_s), timedelta(seconds=longest))
    browser = Browser(request.headers.get("user-agent"), request.client.host if request.client else None)
    secret, opened = sessions.open_session(session, who, lifetimes, browser)
    response.set_cookie(
        session_cookie(request.headers["host"]), secret, max_age=int(longest), **_cookie_of(request)
    )
    note(actor=who.person.id, actor_name=who.person.name, key_id=who.key.id if who.key else None)
    role = people.highest(people.caller_of(session, who.person, who.key))
    return SessionView(name=who.person.name, role=role, method=who.method, expires_at=opened.expires_at)


def _configured(provider: oidc.Provider | None) -> oidc.Provider:
    if provider is None:
        raise NotFoundError(
            "no OIDC provider is configured", remedy="An administrator sets POWERMEAN_OIDC_ISSUER."
        )
    return provider


def _cookie_of(request: Request) -> _Cookie:
    """How browsers keep the session: over TLS only where the service has it, below its own path only."""
    return {
        "path": request.scope["state"].get("root") or "/",
        "secure": request.url.scheme == "https",
        "httponly": True,
        "samesite": "strict",
    }
