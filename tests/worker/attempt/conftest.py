"""A supervisor with an attempt in a folder, beside a server that keeps what it is told."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_server import NodeServer
from tests.support.supervised_case import Case, make_case


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def case(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    attempt_id = f"job-{os.getpid()}-{abs(hash(request.node.name))}.1"
    server = NodeServer()
    server.start()
    case = make_case(data_dir, server, attempt_id)
    yield case
    case.close()
    server.stop()
