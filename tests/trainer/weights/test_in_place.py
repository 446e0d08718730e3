"""A model whose weights were moved into shared memory is the same model, and there is one copy of them."""

import json
import os
import signal
import subprocess
import sys
from copy import deepcopy
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import HoldRequest, PublishRequest
from rollout.shared_weights import ALIGNMENT
from tests.support.tiny_model import tiny_config
from trainer.learner.model_state import unique_weights
from trainer.weights import in_place
from trainer.weights.files import remove_stale
from trainer.weights.in_place import InPlaceWriter, move_weights
from worker.attempt_dir import AttemptDir

FILE = "powermean-job-a.2.weights.safetensors"


def model(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tie_word_embeddings=tied))


class Asked:
    """A rollout service that takes everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, float]] = []

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        self.calls.append((request, timeout_s))

    def hold(self, request: HoldRequest, timeout_s: float) -> None:
        self.calls.append((request, timeout_s))


@pytest.mark.parametrize("tied", [True, False])
def test_the_file_holds_every_weight_once_and_the_model_is_what_it_was(tmp_path: Path, tied: bool) -> None:
    moved, plain = model(tied), model(tied)
    parameters = list(moved.parameters())
    request = InPlaceWriter("job-a", 2, tmp_path).write(moved, 5)
    assert (request.method, request.version, request.memory) == ("in_place", 5, FILE)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    found = load_file(tmp_path / FILE)
    assert ("lm_head.weight" in found) is not tied
    assert found.keys() == {name for name, _ in unique_weights(plain.state_dict())}
    assert all(one is other for one, other in zip(moved.parameters(), parameters, strict=True))
    ids = torch.arange(12)[None]
    assert torch.equal(moved(ids).logits, plain(ids).logits)
    for name, weight in plain.named_parameters():
        assert torch.equal(found[name], weight), name


def test_training_goes_on_as_in_memory_of_its_own_and_shows_in_the_file(tmp_path: Path) -> None:
    """Gradients, the optimiser's state from before the move, and what is loaded into the model later."""
    one, other = model(), model()
    pairs = [(each, torch.optim.AdamW(each.parameters(), lr=0.1, fused=True)) for each in (one, other)]
    for step in range(3):
        for each, optimizer in pairs:
            each(torch.arange(12)[None]).logits.logsumexp(-1).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step == 0:
            move_weights(one, tmp_path / FILE)
    state = other.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in one.state_dict().items())
    assert all(torch.equal(weight, state[name]) for name, weight in load_file(tmp_path / FILE).items())
    one.load_state_dict({name: weight + 1 for name, weight in state.items()})
    assert all(torch.equal(weight, state[name] + 1) for name, weight in load_file(tmp_path / FILE).items())


def test_copies_and_files_of_moved_weights_are_their_own(tmp_path: Path) -> None:
    moved = model()
    move_weights(moved, tmp_path / FILE)
    copy = deepcopy(moved)
    save_file(dict(unique_weights(moved.state_dict())), tmp_path / "saved")
    before = {name: weight.clone() for name, weight in moved.state_dict().items()}
    with torch.no_grad():
        for weight in moved.parameters():
            weight.zero_()
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    assert all(torch.equal(weight, before[name]) for name, weight in copy.state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in load_file(tmp_path / "saved").items())


def test_weights_are_moved_once(tmp_path: Path) -> None:
    moved, writer = model(), InPlaceWriter("job-a", 2, tmp_path)
    writer.write(moved, 1)
    places = [weight.data_ptr() for weight in moved.parameters()]
    writer.discard(1)
    assert writer.write(moved, 2).memory == FILE
    assert [weight.data_ptr() for weight in moved.parameters()] == places
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with torch.no_grad():
        assert moved.model.embed_tokens.weight.zero_().any() == 0  # usable until the end


def test_a_file_that_somebody_removed_is_made_anew(tmp_path: Path) -> None:
    moved, writer = model(), InPlaceWriter("job-a", 2, tmp_path)
    writer.write(moved, 1)
    (tmp_path / FILE).unlink()
    with torch.no_grad():
        moved.model.norm.weight.fill_(3)
    writer.write(moved, 2)
    with torch.no_grad():
        moved.model.norm.weight[0] = 4
    assert load_file(tmp_path / FILE)["model.norm.weight"].tolist() == [4] + [3] * 63


def test_a_publish_and_a_hold_are_words_alone(tmp_path: Path) -> None:
    writer, engine = InPlaceWriter("job-a", 2, tmp_path), Asked()
    request = writer.write(model(), 1)
    writer.publish(engine, request, 3.0)  # type: ignore[arg-type]
    engine.hold(writer.hold_request(2), 4.0)
    assert engine.calls == [(request, 3.0), (HoldRequest(job_id="job-a", attempt=2, version=2), 4.0)]
    assert (request.files, request.tensors, request.sha256) == ((), (), None)
    assert writer.from_the_start


def test_weights_of_odd_sizes_leave_the_others_aligned(tmp_path: Path) -> None:
    """Where they begin decides which kernels compute with them, and how fast."""
    odd = nn.ModuleDict({name: nn.Linear(16, size) for name, size in (("a", 3), ("b", 16), ("c", 5))})
    odd.register_buffer("steps", torch.tensor(1))
    expected = {name: weight.clone() for name, weight in odd.state_dict().items()}
    move_weights(odd, tmp_path / FILE)
    for name, weight in odd.state_dict().items():
        assert torch.equal(weight, expected[name]), name
        assert weight.nbytes % ALIGNMENT or weight.data_ptr() % ALIGNMENT == 0, name
        assert weight.data_ptr() % weight.element_size() == 0, name


def test_a_link_that_is_there_already_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / FILE).symlink_to(victim)
    move_weights(model(), tmp_path / FILE)
    assert victim.read_text() == "mine"


def test_where_there_is_no_room_it_is_an_error_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file grows by writing, not by touching its memory. The model is whole, wherever its weights are."""
    moved, expected = model(), model().state_dict()
    write, written = in_place._write, []

    def full(file: FileIO, view: memoryview) -> None:
        written.append(len(view))
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        write(file, view)

    monkeypatch.setattr(in_place, "_write", full)
    writer = InPlaceWriter("job-a", 2, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        writer.write(moved, 1)
    assert all(torch.equal(weight, expected[name]) for name, weight in moved.state_dict().items())
    writer.write(moved, 1)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_file(tmp_path / FILE).items())
    assert len(written) > 20


MOVES = """
import json, sys, time
from pathlib import Path
import torch
from torch import nn
from trainer.weights import in_place

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) << 10

file = Path(sys.argv[1])
size = 10 << 20  # numbers: an allocation that is given back when it is freed
model = nn.ParameterList(torch.ones(size) for _ in range(6))
held = []
numbers = in_place.numbers

def watched(weight, dtype):
    held.append(anonymous() + 512 * file.stat().st_blocks)
    return numbers(weight, dtype)

in_place.numbers = watched
in_place.move_weights(model, file)
held.append(anonymous() + 512 * file.stat().st_blocks)
print(json.dumps({"weight": 4 * size, "held": held}), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_there_is_never_a_second_copy_and_a_killed_attempt_leaves_none_in_the_end(tmp_path: Path) -> None:
    """The supervisor removes the file when the attempt is over; else the next attempt does."""
    job_id = f"job-{os.getpid()}"
    attempt = AttemptDir(tmp_path / f"{job_id}.7")
    attempt.path.mkdir()
    file = Path("/dev/shm", f"powermean-{job_id}.7.weights.safetensors")
    for clean in (attempt.close, lambda: remove_stale(job_id)):
        with subprocess.Popen(
            [sys.executable, "-c", MOVES, str(file)], stdout=subprocess.PIPE, text=True
        ) as trainer:
            assert trainer.stdout
            told = json.loads(trainer.stdout.readline())
            trainer.send_signal(signal.SIGKILL)
        assert max(told["held"]) < told["held"][0] + 1.5 * told["weight"]
        assert told["held"][-1] < told["held"][0] + 0.5 * told["weight"]
        assert file.exists()
        clean()
        assert not file.exists()
