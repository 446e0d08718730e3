"""Command lines that a person signs in from a browser elsewhere."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, status

from powermean.contracts.signin import (
    DeviceAnswer,
    DeviceClaim,
    DeviceCode,
    DeviceDecision,
    DeviceRequest,
    DeviceView,
)
from server.errors import ForbiddenError
from server.identity import device
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.authentication import browsers_own, client_address
from server.routes.dependencies import RequestDatabase, RequestThrottle

router = APIRouter(prefix="/v1/device-codes", tags=["identity"], route_class=KnownCallerRoute)

Self = Annotated[Caller, May("self.use")]
UserCode = Annotated[str, Path(max_length=40, description="As the command line shows it.")]


@router.post("", status_code=status.HTTP_201_CREATED, summary="Ask to be signed in")
def start(
    wanted: DeviceRequest, request: Request, database: RequestDatabase, throttle: RequestThrottle
) -> DeviceCode:
    """For a command line. A person confirms the code on the page /device. Needs no key."""
    throttle.count("device", client_address(request))
    with database.write() as session:
        return device.start(session, wanted.client, request.client.host if request.client else None)


@router.post("/claim", summary="Ask for the key")
def claim(wanted: DeviceClaim, database: RequestDatabase) -> DeviceAnswer:
    """Ask every `interval_s` seconds. The key comes once, with the first answer after the person's yes."""
    with database.write() as session:
        return device.claim(session, wanted.device_code)


@router.get("/{user_code}", summary="Show who asks to be signed in")
def show(
    user_code: UserCode, caller: Self, database: RequestDatabase, throttle: RequestThrottle
) -> DeviceView:
    """404 for codes that nobody waits with."""
    throttle.count("user code", caller.person_id)
    with database.read() as session:
        return device.show(session, user_code)


@router.post("/{user_code}/decision", summary="Sign a command line in as yourself, or refuse")
def decide(
    user_code: UserCode,
    wanted: DeviceDecision,
    caller: Self,
    request: Request,
    database: RequestDatabase,
    throttle: RequestThrottle,
) -> DeviceView:
    """It gets a key of yours. Only from a browser that is signed in."""
    if browsers_own(request) is None:
        raise ForbiddenError("only a person at a browser can confirm this", remedy="Open /device.")
    throttle.count("user code", caller.person_id)
    with database.write() as session:
        return device.decide(session, caller, user_code, wanted)
