"""What a channel for weights needs."""

import pytest
from pydantic import ValidationError

from powermean.contracts.rollout import ChannelRequest


@pytest.mark.parametrize("place", [{}, {"host": "h"}, {"port": 1}, {"method": "ipc", "host": "h", "port": 1}])
def test_a_channel_has_a_place_unless_it_is_ipc(place: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ChannelRequest.model_validate({"job_id": "job-1", "attempt": 1, "method": "gloo"} | place)
