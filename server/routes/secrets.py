"""Secrets of projects and of people: values go in, and no answer to a person contains one."""

from typing import Annotated

from fastapi import APIRouter, status

from powermean.contracts.secrets import SecretList, SecretName, SecretRequest, SecretView
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestVault
from server.vault import secrets
from server.vault.sealing import Owner

router = APIRouter(prefix="/v1", tags=["secrets"], route_class=KnownCallerRoute)

Oneself = Annotated[Caller, May("self.use")]
Maintainer = Annotated[Caller, May("secret.change")]


@router.put("/projects/{project}/secrets/{name}", summary="Set a project's secret")
def set_secret(
    project: str,
    name: SecretName,
    wanted: SecretRequest,
    caller: Maintainer,
    database: CallersDatabase,
    vault: RequestVault,
) -> SecretView:
    """Jobs of the project may name it from now on. Maintainers only."""
    value, owner = wanted.value.get_secret_value(), Owner("project", project)
    with database.write() as session:
        return secrets.put(session, vault, owner, name, value, caller.person_id)


@router.get("/projects/{project}/secrets", summary="List a project's secrets")
def list_secrets(
    project: str, caller: Annotated[Caller, May("secret.read")], database: CallersDatabase
) -> SecretList:
    """Their names, who set them and when, and when a job last got them."""
    with database.read() as session:
        return SecretList(items=secrets.listed(session, Owner("project", project)))


@router.delete(
    "/projects/{project}/secrets/{name}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove a project's secret",
)
def remove_secret(project: str, name: SecretName, caller: Maintainer, database: CallersDatabase) -> None:
    """Refused (409, with the jobs) while a job that has not ended names it. Maintainers only."""
    with database.write() as session:
        secrets.remove(session, Owner("project", project), name)


@router.put("/me/secrets/{name}", summary="Set a secret of your own")
def set_own_secret(
    name: SecretName, wanted: SecretRequest, caller: Oneself, database: RequestDatabase, vault: RequestVault
) -> SecretView:
    """Your own jobs may name it as me/NAME, in any project."""
    value, owner = wanted.value.get_secret_value(), Owner("person", caller.person_id)
    with database.write() as session:
        return secrets.put(session, vault, owner, name, value, caller.person_id)


@router.get("/me/secrets", summary="List your own secrets")
def list_own_secrets(caller: Oneself, database: RequestDatabase) -> SecretList:
    """Their names, when you set them, and when a job last got them."""
    with database.read() as session:
        return SecretList(items=secrets.listed(session, Owner("person", caller.person_id)))


@router.delete(
    "/me/secrets/{name}", status_code=status.HTTP_204_NO_CONTENT, summary="Remove a secret of your own"
)
def remove_own_secret(name: SecretName, caller: Oneself, database: RequestDatabase) -> None:
    """Refused (409, with the jobs) while one of your jobs that has not ended names it."""
    with database.write() as session:
        secrets.remove(session, Owner("person", caller.person_id), name)
