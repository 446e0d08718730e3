import ast
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import server
from dashboard.remedies import on_pages
from tests.support.html_text import parse

REST = re.compile(r"/v1/|openapi\.json|^(GET|POST|PUT|DELETE) ")


def remedies_of_the_server() -> set[str]:
    """Texts that its errors give as `remedy`, by name or as the last argument of `InvalidInputError.at`."""
    found: set[str] = set()
    for file in Path(server.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "remedy"]
                if isinstance(node.func, ast.Attribute) and node.func.attr == "at":
                    given += node.args[2:]
                found |= {
                    one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    return found


def test_no_remedy_on_a_page_speaks_of_rest() -> None:
    remedies = remedies_of_the_server()
    assert "GET /v1/jobs lists the jobs." in remedies  # the search finds them
    assert [on_pages(remedy) for remedy in remedies if REST.search(on_pages(remedy))] == []


@pytest.mark.parametrize("path", ["/jobs/job-none", "/new?from=job-none"])
def test_a_page_speaks_its_own_language(browser: TestClient, path: str) -> None:
    said = parse(browser.get(path).text).one("div", role="alert").words
    assert "Start from the list of jobs." in said
