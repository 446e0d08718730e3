"""What sharded models must do, run by four ranks at once (test_sharding.py)."""

import json
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from tests.support.tiny_model import tiny_config
from tests.support.tiny_spec import tiny_spec
from tests.trainer.ranks.sharded_policies import (
    CPU,
    LORA,
    SPEC,
    Kind,
    close,
    equal,
    four,
    model,
    optimizer,
    pairs,
    policy,
    rows,
    state,
    two_nodes,
    update,
)
from trainer.engine_connection import Connection, publisher
from trainer.failures import TrainingError
from trainer.learner import checkpoint
from trainer.learner.checkpoint import Progress
from trainer.learner.fetching import fetch_for_node
from trainer.learner.final_model import save_model, take_part_in_saving
from trainer.learner.loading_sharded import load_sharded_policy
from trainer.learner.lora import attach, served_adapter, served_weights
from trainer.learner.model_state import unique_weights
from trainer.learner.optimizer import MasterWeights, make_optimizer
from trainer.policy import output_layer
from trainer.ranks.exchange import Ranks
from trainer.ranks.sharding import rows_held_by, whole
from trainer.ranks.world import World
from trainer.weights.files import WeightWriter, take_part

PROGRESS = Progress(step=3, updates=4, tokens=5)

Case = Callable[[Ranks, Path], None]


def equals_one_process(kind: Kind, mesh: Callable[[], DeviceMesh]) -> Case:
    """Log-probs, the gradient's norm and weights over several updates, and what is scored between them.

    The output layer's logits come in many tiles.
    """

    def case(ranks: Ranks, _folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(output_layer, "CPU_TILE_BYTES", 2 * 4 * 19)  # two rows of logits
            compare(ranks)

    def compare(ranks: Ranks) -> None:
        spread = mesh()
        plain, sharded = policy(kind), policy(kind, spread)
        by_plain, by_sharded = optimizer(plain), optimizer(sharded)
        for number in range(2):
            expected, expected_norm = update(plain, by_plain, number)
            found, norm = update(sharded, by_sharded, number, spread.size(), ranks.world.rank % spread.size())
            for row, log_probs in found.items():
                close(log_probs, expected[row])
            assert abs(norm - expected_norm) < 1e-5 * expected_norm
            tree = next(plain.batches(rows(9), 10**6))
            with torch.no_grad():
                close(sharded.score(tree).log_probs, plain.score(tree).log_probs)
        weights = plain.model.state_dict()
        for name, weight in state(sharded).items():
            close(weight, weights[name])

    return case


def rounds_as_one_process(ranks: Ranks, _folder: Path) -> None:
    """Passes in bfloat16 over weights that stay in float32."""
    kind = Kind(dtype=torch.bfloat16)
    sharded, plain = policy(kind, four()), policy(kind)
    masters = MasterWeights(plain.model)
    tree = next(sharded.batches(rows(0), 10**6))
    assert torch.equal(sharded.score(tree).log_probs, plain.score(tree).log_probs)
    update(sharded, optimizer(sharded), 0, ranks.world.size, ranks.world.rank)
    update(plain, make_optimizer(plain.model, SPEC, masters), 0)
    found = state(sharded)
    for name, master in masters.by_name.items():
        assert found[name].dtype == torch.float32
        close(found[name], master.detach(), 1e-3)
        assert not torch.equal(found[name], found[name].bfloat16().float()), name


def reshards(ranks: Ranks, folder: Path) -> None:
    """A checkpoint of 1 rank goes to 2, from there to 4, to 2 times 2, and back to 1: all is as it was."""
    kind = Kind()
    first = policy(kind)
    by_first = optimizer(first)
    for number in range(2):
        update(first, by_first, number)
    if ranks.world.leads:
        (folder / "start").mkdir()
        checkpoint.save(folder / "start", first.model, by_first, PROGRESS)
    dist.barrier()
    before = "start"
    for after, mesh in (("pairs", pairs()), ("four", four()), ("nodes", two_nodes()), ("end", None)):
        beside = after == "pairs" and ranks.world.rank >= 2
        size = 1 if mesh is None else mesh.size()
        there = World(ranks.world.rank % size, size)
        found = policy(Kind(), mesh)
        with torch.no_grad():
            for weight in found.model.parameters():
                weight.zero_()
        by = optimizer(found)
        assert checkpoint.load(folder / before, found.model, by, world=there) == PROGRESS
        equal(state(found), state(first))
        moments, expected = by.state_dict()["state"], by_first.state_dict()["state"]
        for number, one in expected.items():
            equal({name: whole(value) for name, value in moments[number].items()}, one)
        (folder / after).mkdir(exist_ok=True)
        if not beside and (mesh is not None or ranks.world.leads):
            checkpoint.save(folder / after, found.model, by, PROGRESS, world=there)
        dist.barrier()
        before = after
    if ranks.world.leads:
        names = {path.name for path in (folder / "nodes").iterdir()}
        assert names == {
            "state.json",
            *(f"{name}.{n}-of-2.safetensors" for name in ("model", "optimizer") for n in (1, 2)),
            *(f"random.{n}-of-4.safetensors" for n in range(1, 5)),
        }
        for name in ("model", "optimizer"):
            start, end = (folder / each / f"{name}.safetensors" for each in ("start", "end"))
            equal(load_file(start), load_file(end))


def goes_on(ranks: Ranks, folder: Path) -> None:
    """From a sharded checkpoint, to the same bits."""
    one, other = policy(Kind(), four()), policy(Kind(), four())
    by_one, by_other = optimizer(one), optimizer(other)
    update(one, by_one, 0, ranks.world.size, ranks.world.rank)
    checkpoint.save(folder, one.model, by_one, PROGRESS, world=ranks.world)
    dist.barrier()
    checkpoint.load(folder, other.model, by_other, world=ranks.world)
    for of, by in ((one, by_one), (other, by_other)):
        update(of, by, 1, ranks.world.size, ranks.world.rank)
    equal(state(other), state(one))


def serves_what_one_process_serves(ranks: Ranks, folder: Path) -> None:
    """Merged weights of an adapter too, and a rank that breaks off does not leave the others waiting."""
    for kind in (Kind(), Kind(tied=False, lora=True)):
        expected, sharded = dict(served_weights(model(kind))), policy(kind, two_nodes()).model
        equal(dict(served_weights(sharded)), expected)
        given = served_weights(sharded)
        with closing(given):
            assert len(list(islice(given, 2 if ranks.world.leads else None))) > 1
        dist.barrier()
        rounded = dict(served_weights(sharded, torch.bfloat16))
        for name, weight in expected.items():
            assert torch.equal(rounded[name].bfloat16(), weight.bfloat16()), name


def is_loaded_by_rank_0_alone(ranks: Ranks, folder: Path) -> None:
    """Other ranks never read the weights; an adapter's first ones are rank 0's, too. The model is tried."""
    for number, (kind, adapter) in enumerate(((Kind(), False), (Kind(tied=False), True))):
        source = folder / str(number)
        if ranks.world.leads:
            model(kind).save_pretrained(source)
        ranks.wait_for_all()
        if not ranks.world.leads:
            (folder / f"{number}-{ranks.world.rank}").mkdir()
            source = folder / f"{number}-{ranks.world.rank}"
            (source / "config.json").write_bytes((folder / str(number) / "config.json").read_bytes())
        torch.manual_seed(ranks.world.rank)
        found = load_sharded_policy(
            source,
            two_nodes(),
            leads=ranks.world.leads,
            device=CPU,
            dtype=torch.float32,
            temperature=0.9,
            prepare=partial(attach, spec=LORA, name="tiny") if adapter else nn.Module.eval,
            gradient_checkpointing=True,
        )
        assert found.by_tree
        equal(dict(served_weights(found.model)), dict(unique_weights(model(kind).state_dict())))
        tree = next(found.batches(rows(0), 10**6))
        close(found.score(tree).log_probs, policy(kind).score(tree).log_probs)
        for name, weight in state(found).items():
            assert torch.equal(ranks.total(weight) / 4, weight), name


def is_stored_by_all(ranks: Ranks, folder: Path) -> None:
    """Each rank gives its files to the store; what rank 0 commits names them all. A node of two ranks brings
    here what these read."""
    world, store = ranks.world, ArtefactStore(f"file://{folder}/store")
    one, other = policy(Kind(), four()), policy(Kind(), four())
    by = optimizer(one)
    update(one, by, 0, world.size, world.rank)
    torch.manual_seed(world.rank)
    manifest = checkpoint.store(store, "jobs/a", folder, one.model, by, PROGRESS, {}, ranks)
    drawn = torch.rand(2)
    assert len(manifest.files) == 3 * world.size + 1
    back, first = folder / f"back-{world.rank}", world.rank // 2 * 2
    fetch_for_node(store, manifest, back, World(first, 4, 0, 2), rows_held_by(other.model))
    complete = {name for name, ref in manifest.files.items() if _sha256(back / name) == ref.sha256}
    parts = {"model": {0, first, first + 1}, "optimizer": {0, first, first + 1}, "random": {first, first + 1}}
    assert complete == {
        "state.json",
        *(checkpoint.file_name(kind, number, 4) for kind, numbers in parts.items() for number in numbers),
    }
    checkpoint.load(back, other.model, optimizer(other), world=world)
    equal(state(other), state(one))
    assert torch.equal(torch.rand(2), drawn)


def _sha256(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def saves_a_folder(ranks: Ranks, folder: Path) -> None:
    """What from_pretrained and peft load, from rank 0's files."""
    source, target = folder / "base", folder / "model"
    kind = Kind(lora=True)
    if ranks.world.leads:
        LlamaForCausalLM(tiny_config()).save_pretrained(source)
    sharded = policy(kind, two_nodes())
    ranks.wait_for_all()
    if not ranks.world.leads:
        take_part_in_saving(sharded)
        return
    save_model(sharded, source, target)
    loaded = LlamaForCausalLM.from_pretrained(target)
    assert json.loads((target / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    equal(dict(served_weights(model(kind))), dict(unique_weights(loaded.state_dict())))
    equal(load_file(target / "adapter" / "adapter_model.safetensors"), dict(served_adapter(model(kind))))


def publishes_files(ranks: Ranks, folder: Path) -> None:
    """Rank 0 writes what one process would; the others are called, and take part."""
    for kind, adapter_alone in ((Kind(), False), (Kind(lora=True), True)):
        sharded = policy(kind, four()).model
        if not ranks.world.leads:
            command = ranks.told()
            assert command.do == "gather"
            take_part(sharded, torch.bfloat16, adapter_alone=adapter_alone)
            continue
        store = ArtefactStore(f"file://{folder}/store")
        writer = partial(
            WeightWriter,
            "job",
            method="shm",
            dtype=torch.bfloat16,
            store=store,
            scratch=folder,
            shared_memory=folder,
            adapter_alone=adapter_alone,
        )
        found = writer(attempt=1, call_ranks=lambda: ranks.tell("gather")).write(sharded, 1)
        expected = writer(attempt=2).write(model(kind), 1)
        assert [file.sha256 for file in found.files] == [file.sha256 for file in expected.files]


def is_published_by_ways_that_take_no_whole_copy(_ranks: Ranks, folder: Path) -> None:
    sharded, store = policy(Kind(), four()), ArtefactStore(f"file://{folder}/store")
    connection = Connection(None, on_this_host=True, methods=("in_place", "shm", "store"))

    def writer(method: str, engine: str = "transformers") -> object:
        rollout = {"publish": method, "engine": engine, "group_size": 8, "max_new_tokens": 4}
        gpus = {"gpus": 1} if engine == "vllm" else {}
        spec = tiny_spec("tiny", rollout=rollout, resources=gpus)
        claim = Claim(
            attempt_id="job-a.1",
            job_id="job-a",
            number=1,
            spec=JobSpec.model_validate(spec),
            allocations=(),
            token="secret",
            lease_s=60,
            beat_s=10,
        )
        return publisher(connection, claim, sharded, store, folder)

    assert isinstance(writer("auto"), WeightWriter)
    with pytest.raises(TrainingError, match="they are spread over ranks"):
        writer("in_place")
    spread = pytest.raises(TrainingError, match="a whole copy of the sharded model's weights")
    with spread as caught:
        writer("ipc", "vllm")
    assert caught.value.error.code == "sharded_model"


CASES: dict[str, Case] = {
    "tied, two ranks": equals_one_process(Kind(), pairs),
    "untied, four ranks": equals_one_process(Kind(tied=False), four),
    "two nodes of two": equals_one_process(Kind(), two_nodes),
    "layers computed again": equals_one_process(Kind(checkpointing=True), pairs),
    "adapter, two ranks": equals_one_process(Kind(lora=True), pairs),
    "adapter, two nodes of two": equals_one_process(Kind(tied=False, lora=True), two_nodes),
    "bfloat16": rounds_as_one_process,
    "reshards": reshards,
    "goes on": goes_on,
    "serves": serves_what_one_process_serves,
    "is loaded by rank 0 alone": is_loaded_by_rank_0_alone,
    "is stored by all": is_stored_by_all,
    "saves a folder": saves_a_folder,
    "publishes files": publishes_files,
    "publishes no whole copy": is_published_by_ways_that_take_no_whole_copy,
}


def run_case(ranks: Ranks, name: str, folder: Path) -> str:
    """What it failed with on this rank, "" for nothing. The ranks share the folder."""
    try:
        CASES[name](ranks, folder)
    except Exception:  # noqa: BLE001 (the test shows it)
        return traceback.format_exc()
    return ""
