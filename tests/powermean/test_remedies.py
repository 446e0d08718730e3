"""Remedies speak the interface of whoever reads them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.remedies import REMEDIES, spoken

SERVER = Path(__file__).parents[2] / "server"
OF_THE_API = re.compile(r"/v1/|/login\b|/metrics\b|/checkpoints\b|openapi\.json|Bearer ")
# Answers to requests that only programs make.
FOR_PROGRAMS = {"Send an Origin header of this service, or use a bearer key."}


def remedies() -> Iterator[str]:
    """Every remedy in the server's code: what is given or assigned to that name, its defaults, and the third
    of `.at()`."""
    for file in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            found: list[ast.expr] = []
            if isinstance(node, ast.FunctionDef):
                defaults = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
                found = [value for parameter, value in defaults if parameter.arg == "remedy"]
            elif isinstance(node, ast.keyword | ast.Assign):
                name = node.arg if isinstance(node, ast.keyword) else ast.unparse(node.targets[0])
                found = [node.value] if name == "remedy" else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".at"):
                found = node.args[2:3]
            for part in (part for value in found for part in ast.walk(value)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


@pytest.mark.slow
def test_whatever_names_a_call_is_said_otherwise_elsewhere() -> None:
    found = {text for text in remedies() if OF_THE_API.search(text)} - FOR_PROGRAMS
    assert found == {one.api for one in REMEDIES}


@pytest.mark.parametrize("one", REMEDIES, ids=lambda one: one.api)
def test_each_reader_gets_their_own(one) -> None:
    told = f"no such thing\n  data.dataset: none ({one.api})\n{one.api}"
    for reader, own in (("terminal", one.terminal), ("page", one.page)):
        assert spoken(told, reader) == told.replace(one.api, own)
