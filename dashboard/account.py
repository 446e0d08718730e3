"""One's own account: who one is, password, sessions, keys; and command lines that wait to be signed in."""

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import raw_client, require_same_origin
from dashboard.problems import said_once
from dashboard.rendering import page
from powermean.calls import ApiError, check
from powermean.contracts.api import ErrorBody, FieldError
from powermean.contracts.identity import KeyRequest
from powermean.contracts.signin import KEY_DAYS, MIN_PASSWORD, DeviceDecision

DAYS = (7, 30, KEY_DAYS, 365)
ROLES = ("viewer", "member", "maintainer", "auditor", "admin")


async def account_page(request: Request) -> Response:
    """GET /account."""
    return await _shown(request)


async def _shown(request: Request, status: int = 200, **more: Any) -> Response:
    async with api.client(request) as client:
        me, keys, sessions, ways = await asyncio.gather(
            client.me(), client.keys(), client.sessions(), client.sign_in_ways()
        )
    every = {key.id: key for key in keys.items}
    made = {
        key.made_by for key in keys.items if key.revoked_at is None
    }  # a revoked key whose keys work stays
    own = [key for key in keys.items if key.person_id == me.id and (not key.revoked_at or key.id in made)]
    mine = next((one for one in sessions.items if one.current), None)
    context = {"new_key": None, "error": None, "where": None} | more
    return page(
        request,
        "account.html",
        status=status,
        me=me,
        keys=own,
        every=every,
        made=made,
        sessions=sessions.items,
        session=mine,
        provider=ways.oidc,
        days=DAYS,
        usual_days=KEY_DAYS,
        roles=ROLES,
        min_password=MIN_PASSWORD,
        **context,
    )


async def set_password(request: Request) -> Response:
    """POST /account/password."""
    require_same_origin(request)
    form = await request.form()
    new, again = str(form.get("password") or ""), str(form.get("again") or "")
    if new != again:
        error = ErrorBody(code="invalid", message="The two new passwords differ.")
        return await _shown(request, 422, error=error, where="password")
    body = {"password": new, "current": str(form.get("current") or "") or None}
    async with raw_client(request) as client:
        answer = await client.put("/v1/me/password", json=body)
    try:
        check(answer)
    except ApiError as refused:
        if refused.status == 401:
            raise
        return await _shown(request, refused.status, error=said_once(refused.body), where="password")
    changed = RedirectResponse("/account#password", status_code=303)
    for value in answer.headers.get_list("set-cookie"):
        changed.headers.append("set-cookie", value)
    return changed


async def create_key(request: Request) -> Response:
    """POST /account/keys: the page that shows the new key, this once."""
    require_same_origin(request)
    form = await request.form()
    try:
        wanted = KeyRequest.model_validate(_given(form, ("name", "role", "project", "days")))
        async with api.client(request) as client:
            made = await client.create_key(wanted)
    except ValidationError as error:
        return await _shown(request, 422, error=said_once(_problem(error)), where="keys")
    except ApiError as refused:
        if refused.status == 401:
            raise
        return await _shown(request, refused.status, error=said_once(refused.body), where="keys")
    return await _shown(request, 201, new_key=made)


async def revoke_key(request: Request) -> Response:
    """POST /account/keys/{key_id}/revoke, with `cascade` also those that were made with it."""
    require_same_origin(request)
    cascade = (await request.form()).get("cascade") == "yes"
    async with api.client(request) as client:
        await client.revoke_key(request.path_params["key_id"], cascade=cascade)
    return RedirectResponse("/account#keys", status_code=303)


async def end_session(request: Request) -> Response:
    """POST /account/sessions/{session_id}/end."""
    require_same_origin(request)
    async with api.client(request) as client:
        await client.end_session(request.path_params["session_id"])
    return RedirectResponse("/account#sessions", status_code=303)


async def device_page(request: Request) -> Response:
    """GET /device: asks for the code, and with ?code= shows who waits with it."""
    code = request.query_params.get("code", "").strip()
    async with api.client(request) as client:
        me = await client.me()
        if not code:
            return page(
                request, "device.html", me=me, device=None, error=None, days=DAYS, usual_days=KEY_DAYS
            )
        try:
            device, error, status = await client.show_device(code), None, 200
        except ApiError as refused:
            if refused.status == 401:
                raise
            device, error, status = None, said_once(refused.body), refused.status
    return page(
        request, "device.html", status, me=me, device=device, error=error, days=DAYS, usual_days=KEY_DAYS
    )


async def decide_device(request: Request) -> Response:
    """POST /device: the person's word."""
    require_same_origin(request)
    form = await request.form()
    given = _given(form, ("project", "days")) | {"approve": form.get("approve") == "yes"}
    async with api.client(request) as client:
        me = await client.me()
        try:
            device = await client.decide_device(
                str(form.get("code") or "-"), DeviceDecision.model_validate(given)
            )
            error, status = None, 200
        except ValidationError as invalid:
            device, error, status = None, said_once(_problem(invalid)), 422
        except ApiError as refused:
            if refused.status == 401:
                raise
            device, error, status = None, said_once(refused.body), refused.status
    return page(
        request, "device.html", status, me=me, device=device, error=error, days=DAYS, usual_days=KEY_DAYS
    )


def _given(form: FormData, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields that were filled in."""
    return {name: str(form[name]).strip() for name in names if str(form.get(name) or "").strip()}


def _problem(error: ValidationError) -> ErrorBody:
    fields = [
        FieldError(path=".".join(str(part) for part in one["loc"]), message=one["msg"])
        for one in error.errors(include_url=False, include_input=False)
    ]
    return ErrorBody(code="invalid", message="This can't be used.", fields=tuple(fields))
