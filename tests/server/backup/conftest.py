"""Backups of a service with something in every table."""

from pathlib import Path

import pytest

from tests.support.backups import Backups, filled
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def backups(service: ServiceDriver, tmp_path: Path) -> Backups:
    return filled(service, tmp_path)
