"""A mapped safetensors file: a format that others read, one memory for all who map it, ties that hold."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rollout.shared_weights import ALIGNMENT, file_head, float_types, mapped, replace_weights

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "counter": torch.tensor(2**40),
    "mask": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 3),
}


def written(path: Path, tensors: dict[str, Tensor] = TENSORS) -> Path:
    head = file_head((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    path.write_bytes(head + b"".join(bytes(one.numpy().data) for one in flat))
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    path = written(tmp_path / "weights")
    assert same(load_file(path), TENSORS)
    assert same(mapped(path), TENSORS)


def test_the_first_tensor_begins_where_memory_of_pytorch_s_own_does(tmp_path: Path) -> None:
    for length in (1, 2, 30, 63, 64, 65):
        tensors = {"n" * length: torch.ones(2)}
        (view,) = mapped(written(tmp_path / "weights", tensors)).values()
        assert view.data_ptr() % ALIGNMENT == 0


def test_all_who_map_it_have_one_memory_for_as_long_as_they_use_it(tmp_path: Path) -> None:
    path = written(tmp_path / "weights")
    writing, reading = mapped(path, writable=True)["matrix"], mapped(path)["matrix"]
    path.unlink()
    writing.mul_(3)
    assert torch.equal(reading, 3 * TENSORS["matrix"])


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_who_only_reads_hears_no_warning_and_can_t_write(tmp_path: Path) -> None:
    path = written(tmp_path / "weights")
    mapped(path)
    program = f"""
from pathlib import Path
from rollout.shared_weights import mapped
views = mapped(Path({str(path)!r}))
print(float(views["matrix"].sum()), flush=True)
views["matrix"].zero_()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("66.0\n", -signal.SIGSEGV)
    assert "Warning" not in ended.stderr
    assert same(load_file(path), TENSORS)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * 100, b"\x02" + b"\x00" * 7 + b"[]", b"\x0c" + b"\x00" * 7 + b'{"a": "none"}'],
)
def test_what_is_no_such_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011
        mapped(path)


def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "weights", {"matrix": TENSORS["matrix"]})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="buffer"):
        mapped(path)


class Tied(nn.Module):
    """One parameter under two names, two parameters over one memory, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4, bias=False)
        self.outer = nn.Linear(3, 4, bias=False)
        self.outer.weight = self.inner.weight
        self.view = nn.Parameter(self.inner.weight.data)
        self.norm = nn.Parameter(torch.ones(4))
        self.register_buffer("steps", torch.tensor(5))


def test_replaced_weights_stay_tied_and_who_knew_them_still_does() -> None:
    model = Tied()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    own = model.norm.data_ptr()
    new = {"outer.weight": torch.full((4, 3), 2.0), "norm": torch.zeros(4), "steps": torch.tensor(7)}
    replace_weights(model.state_dict(keep_vars=True), new.items())
    assert model.inner.weight is model.outer.weight is parameters["inner.weight"]
    assert model.inner.weight.data_ptr() == model.view.data_ptr() == new["outer.weight"].data_ptr()
    assert model.norm.data_ptr() == new["norm"].data_ptr() != own
    assert int(model.steps) == 7
    (model.norm * torch.arange(4)).sum().backward()
    optimizer.step()
    assert new["norm"].tolist() == [0, -1, -2, -3]


def test_one_weight_is_replaced_before_the_next_is_asked_for() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    state = model.state_dict(keep_vars=True)
    seen = []

    def one_by_one() -> Iterator[tuple[str, Tensor]]:
        for name in state:
            seen.append([bool(weight.any()) for weight in state.values()])
            yield name, torch.zeros(2, 2)

    replace_weights(state, one_by_one())
    assert seen == [[True, True, True], [False, True, True], [False, False, True]]


def test_counters_are_of_no_floating_type(tmp_path: Path) -> None:
    assert float_types(TENSORS) == {torch.float32, torch.bfloat16}
    path = tmp_path / "weights"
    save_file({"counter": TENSORS["counter"]}, path)
    assert float_types(mapped(path)) == set()
