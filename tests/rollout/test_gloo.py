"""Both ends of the gloo channel: bytes arrive as they were, and no end waits for one that is gone."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

from rollout.gloo import Announced, Receiver, Sender, TransferError, address_towards, tensors_sha256

LOOPBACK = "127.0.0.1"
Result = TypeVar("Result")


def _tensors() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    made = torch.randn(40, 30, generator=chance)
    return {
        "plain": made,
        "turned": made.t(),  # not contiguous
        "half": made.to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 5),
        "large": torch.randn(1 << 20, generator=chance),
    }


def _announced(tensors: dict[str, torch.Tensor]) -> list[Announced]:
    return [Announced(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def pair(pool: ThreadPoolExecutor) -> Iterator[tuple[Sender, Receiver]]:
    sender, receiver = _met(pool)
    yield sender, receiver
    sender.close()
    receiver.close()


def _met(pool: ThreadPoolExecutor, timeout_s: float = 10.0) -> tuple[Sender, Receiver]:
    sender = Sender(LOOPBACK, timeout_s)
    coming = pool.submit(Receiver, LOOPBACK, sender.port, timeout_s)
    _until(sender.is_met)
    sender.meet()
    return sender, coming.result(timeout_s)


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def _fails(what: Future[Result]) -> str:
    with pytest.raises(TransferError) as caught:
        what.result(20)
    return str(caught.value)


def _take(receiver: Receiver, version: int, sha256: str | None = None) -> dict[str, torch.Tensor]:
    tensors = _tensors()
    told = tensors_sha256(tensors.values()) if sha256 is None else sha256
    return dict(receiver.receive(version, _announced(tensors), told))


def test_several_versions_arrive_bit_by_bit(pool: ThreadPoolExecutor, pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    for version in (1, 2, 7):
        taking = pool.submit(_take, receiver, version)
        _until(lambda version=version: sender.is_awaited(version))
        sender.send(_tensors().values())
        found = taking.result(10)
        assert list(found) == list(_tensors())
        for name, tensor in _tensors().items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert not sender.is_awaited(8)


def test_other_bytes_than_announced_are_refused(
    pool: ThreadPoolExecutor, pair: tuple[Sender, Receiver]
) -> None:
    sender, receiver = pair
    taking = pool.submit(_take, receiver, 1, "0" * 64)
    _until(lambda: sender.is_awaited(1))
    sender.send(_tensors().values())
    assert "weights_corrupt" in _fails(taking)


def test_a_trainer_that_leaves_in_mid_transfer_ends_the_workers_call(
    pool: ThreadPoolExecutor, pair: tuple[Sender, Receiver]
) -> None:
    sender, receiver = pair
    taking = pool.submit(_take, receiver, 1)
    _until(lambda: sender.is_awaited(1))
    sender.send([_tensors()["plain"]])
    left = time.monotonic()
    sender.close()
    assert "sent no more weights" in _fails(taking)
    assert time.monotonic() - left < 5.0


def test_a_worker_that_leaves_in_mid_transfer_ends_the_trainers_call(
    pool: ThreadPoolExecutor, pair: tuple[Sender, Receiver]
) -> None:
    sender, receiver = pair
    sending = pool.submit(sender.send, [torch.zeros(1 << 24)])
    time.sleep(0.2)
    receiver.close()
    assert "accepted no more weights" in _fails(sending)


@pytest.mark.slow
def test_an_end_that_hangs_is_given_up_at_the_deadline(pool: ThreadPoolExecutor) -> None:
    sender, receiver = _met(pool, timeout_s=3.0)
    started = time.monotonic()
    assert "Timed out" in _fails(pool.submit(_take, receiver, 1))
    assert 0.5 < time.monotonic() - started < 10.0
    sender.close()
    receiver.close()


@pytest.mark.slow
def test_where_no_trainer_waits_the_worker_says_so(pool: ThreadPoolExecutor) -> None:
    with socket.create_server((LOOPBACK, 0)) as probe:
        port = probe.getsockname()[1]
    assert f"no trainer is listening at {LOOPBACK}:{port}" in _fails(
        pool.submit(Receiver, LOOPBACK, port, 1.0)
    )


def test_only_the_given_address_is_listened_at(pair: tuple[Sender, Receiver]) -> None:
    mine = {line.split()[1] for line in _listening()}
    sender, _ = pair
    port = f":{sender.port:04X}"
    assert {place for place in mine if place.endswith(port)} == {f"0100007F{port}"}


def _listening() -> list[str]:
    found = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as lines:
            found += [line for line in list(lines)[1:] if line.split()[3] == "0A"]
    return found


def test_the_port_is_free_again_after_close() -> None:
    sender = Sender(LOOPBACK, 5.0)
    sender.close()
    _until(lambda: not any(line.split()[1].endswith(f":{sender.port:04X}") for line in _listening()))


def test_the_address_towards_loopback_is_loopback() -> None:
    assert address_towards(LOOPBACK, 9) == LOOPBACK
    assert not [thread for thread in threading.enumerate() if thread.name == "publish"]
