import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from dashboard import assets
from tests.support.fake_api import FakeApi

DASHBOARD = Path(assets.__file__).parent


def test_styles_and_scripts_are_served_with_their_types(stranger: TestClient) -> None:
    for address, kind in (
        (assets.address("css/base.css"), "text/css"),
        (assets.address("js/job.js"), "text/javascript"),
    ):
        answer = stranger.get(address)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "immutable" in answer.headers["cache-control"]
    module = stranger.get("/static/js/store.js")  # modules import each other by plain name
    assert module.headers["cache-control"] == "no-cache"
    assert (
        stranger.get("/static/js/store.js", headers={"If-None-Match": module.headers["etag"]}).status_code
        == 304
    )


@pytest.mark.parametrize(
    "path", ["nothing.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "vendor/other.js", "css"]
)
def test_nothing_else_is_served(stranger: TestClient, path: str) -> None:
    assert stranger.get(f"/static/{path}").status_code == 404


def test_without_the_plotting_library_the_page_says_how_to_install_it(
    browser: TestClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.add_job().metrics([{"step": 1, "update": -1, "name": "reward", "value": 0.5}])
    monkeypatch.setattr(assets, "VENDOR", {name: tmp_path / name for name in assets.VENDOR})
    page = browser.get("/jobs/job-a")
    assert page.status_code == 200
    assert assets.INSTALL in page.text
    assert "/static/vendor/" not in page.text
    assert "0.5000" in page.text  # the numbers are there all the same
    assert browser.get("/static/vendor/echarts.js").status_code == 404


def test_the_lock_file_pins_and_names_no_host() -> None:
    lock = (DASHBOARD / "package-lock.json").read_text()
    assert "http" not in lock
    assert "resolved" not in lock
    packages = json.loads(lock)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)
    wanted = json.loads((DASHBOARD / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert wanted.keys() == packages[""]["dependencies"].keys()


def test_templates_hold_no_inline_scripts_styles_or_foreign_addresses() -> None:
    for template in (DASHBOARD / "templates").rglob("*.html"):
        text = template.read_text()
        assert not re.search(r"\sstyle=|\son\w+=|javascript:|<style", text), template
        assert not re.search(r"https?://", text), template
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script or 'type="application/json"' in script, template
        assert "| safe" not in text, template


def test_charts_use_known_metrics() -> None:
    from powermean.contracts.metrics import METRICS

    used = set(re.findall(r'\{ name: "([^"]+)"', (DASHBOARD / "static/js/charts.js").read_text()))
    assert used
    assert used <= METRICS.keys()


@pytest.mark.parametrize("path", ["x" * 300, "js/" + "y/" * 3000 + "z.js", "%00.js", "js/%ff.js"])
def test_a_path_that_is_no_file_name_is_not_found(stranger: TestClient, path: str) -> None:
    assert stranger.get(f"/static/{path}").status_code == 404
