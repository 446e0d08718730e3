"""The same service as in the integration tests."""

from tests.integration.conftest import model_root as model_root
from tests.integration.conftest import service as service
