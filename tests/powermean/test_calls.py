"""What is read of the API's answers."""

import pytest

from powermean.calls import ApiError, spec_of
from powermean.contracts.api import FieldError
from tests.support.sample_jobs import SPEC, job


@pytest.mark.parametrize(
    ("refused", "needed", "reads"),
    [
        ("model.lora.rank", "model", False),
        ("resources", "resources.gpus", False),
        ("model.lora", "model.lora", False),
        ("model.lora", "model.dtype", True),
        ("algorithm.of_a_newer_version", "algorithm.name", True),
        ("rollout.group_size_max", "rollout.group_size", True),
    ],
)
def test_a_spec_without_what_is_needed_of_it_is_not_read(refused: str, needed: str, reads: bool) -> None:
    shown = job(spec_refused=(FieldError(path=refused, message="too large"),))
    assert spec_of(shown) == SPEC
    if reads:
        assert spec_of(shown, needed) == SPEC
        return
    with pytest.raises(ApiError, match=f"{refused}: too large") as error:
        spec_of(shown, needed)
    assert error.value.code == "spec_refused"
