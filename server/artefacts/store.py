"""The artefact store of the running server, for routes."""

from typing import Annotated

from fastapi import Depends, Request

from powermean.artefacts import ArtefactStore


def _store_of(request: Request) -> ArtefactStore:
    store: ArtefactStore = request.app.state.artefacts
    return store


RequestStore = Annotated[ArtefactStore, Depends(_store_of)]
