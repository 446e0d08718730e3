"""What an exception of torch is taken for."""

import pytest
import torch

from trainer.failures import is_broken_call, is_out_of_memory

NCCL, CLOSED = torch.distributed.DistBackendError, "Connection closed by peer [127.0.0.1]:9"


@pytest.mark.parametrize(
    ("error", "broken", "memory"),
    [
        (NCCL("NCCL error: unhandled system error"), True, False),
        (NCCL("NCCL error: Failed to CUDA calloc 4194304 bytes: out of memory"), False, True),
        (RuntimeError(f"[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] {CLOSED}"), True, False),
        (RuntimeError("Broken pipe"), False, False),
        (RuntimeError("a model named NCCL"), False, False),
        (torch.OutOfMemoryError("CUDA out of memory."), False, True),
    ],
)
def test_the_network_is_blamed_for_failed_calls_among_ranks_alone(
    error: Exception, broken: bool, memory: bool
) -> None:
    assert (is_broken_call(error), is_out_of_memory(error)) == (broken, memory)
