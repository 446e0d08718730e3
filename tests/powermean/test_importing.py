"""Imports without garbage collection, which goes on afterwards."""

import gc
import importlib

import pytest

from powermean.importing import uncollected


def test_it_is_off_for_the_block_and_then_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), uncollected():
        importlib.import_module("no_such_module" if not gc.isenabled() else "gc")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
