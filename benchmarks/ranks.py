"""Seconds a step and bytes sent by 1, 2 and 4 ranks on this machine: `python benchmarks/ranks.py`

A step is one update of a small Llama (random weights) on 16 groups of 4, by the trainer's own learner, ranks
joined by gloo over loopback. Bytes are those that the ranks write (/proc/self/io counts sockets too), so they
hold on any machine; seconds are those of this one, whose cores the ranks share, so only the sum of their CPU
seconds says what ranks cost. `--out FILE` keeps the rows for benchmarks/scale.py, which puts them into
docs/scale.md.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.training import OptimizerSpec
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import build_algorithm
from trainer.policy.loading import make_policy
from trainer.ranks.exchange import Ranks
from trainer.ranks.sharding import make_mesh, shard
from trainer.ranks.world import World
from trainer.rollouts.batching import Rollouts

GROUPS, SIZE, PROMPT, LONGEST = 16, 4, 32, 64
FORK = multiprocessing.get_context("fork")
STEPS = 4  # after one that warms up
CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
CASES = [(1, "replicate"), (2, "replicate"), (2, "shard"), (4, "replicate"), (4, "shard")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for size, how in CASES:
        with tempfile.TemporaryDirectory() as folder:
            # Forked, so that PyTorch is imported once; nothing has run in this process.
            ranks = [FORK.Process(target=_rank, args=(rank, size, how, Path(folder))) for rank in range(size)]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
        rows.append(
            {
                "ranks": size,
                "how": how,
                "seconds": max(one["seconds"] for one in found),
                "cpu_seconds": sum(one["cpu_seconds"] for one in found),
                "sent": sum(one["sent"] for one in found),
                "held": max(one["held"] for one in found),
                "norm": found[0]["norm"],
                "weights": found[0]["weights"],
            }
        )
        print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _rank(rank: int, size: int, how: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    world = World(rank, size, rank, size)
    if size > 1:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=600)
        )
    learner = _learner(world, how)
    for step in range(STEPS + 1):
        if step == 1:
            start, cpu, sent = time.perf_counter(), _cpu_seconds(), _written()
        batch = _batch(learner)
        report = learner.update(batch, range(GROUPS), 0)
    held = sum(
        getattr(value, "_local_tensor", value).nbytes
        for weight in learner.policy.model.parameters()
        for value in (weight, *(learner.optimizer.state[weight][name] for name in ("exp_avg", "exp_avg_sq")))
    )
    found = {
        "seconds": (time.perf_counter() - start) / STEPS,
        "cpu_seconds": (_cpu_seconds() - cpu) / STEPS,
        "sent": (_written() - sent) / STEPS,
        "held": held,
        "norm": report.grad_norm,
        "weights": sum(weight.numel() for weight in learner.policy.model.parameters()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def _learner(world: World, how: str) -> Learner:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    if how == "shard":
        shard(model, make_mesh(world, "shard", torch.device("cpu")), torch.float32)
    policy = make_policy(
        model, dtype=torch.float32, temperature=1.0, gradient_checkpointing=False, compiled="off"
    )
    spec = OptimizerSpec(learning_rate=1e-4, warmup_updates=0)
    return Learner(
        policy=policy,
        reference=None,
        algorithm=build_algorithm(Pmpo()),
        spec=spec,
        optimizer=make_optimizer(policy.model, spec),
        micro_batch_tokens=1 << 20,  # one pass in each update
        pad_token_id=0,
        ranks=Ranks(world),
    )


def _batch(learner: Learner) -> TrainingBatch:
    """The same on all ranks: prompts of one length, completions of 16 to 64 tokens."""
    chance = torch.Generator().manual_seed(0)
    count = GROUPS * SIZE
    lengths = torch.randint(16, LONGEST + 1, (count,), generator=chance)
    mask = torch.arange(LONGEST) < lengths[:, None]
    rollouts = Rollouts(
        prompts=tuple(
            tuple(torch.randint(0, 2048, (PROMPT,), generator=chance).tolist()) for _ in range(GROUPS)
        ),
        tokens=torch.randint(0, 2048, (count, LONGEST), generator=chance) * mask,
        mask=mask,
        sampler_log_probs=-torch.rand(count, LONGEST, generator=chance) * mask,
        truncated=torch.zeros(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int64),
    )
    rewards = torch.randint(0, 2, (count,), generator=chance).double()
    return TrainingBatch.start(
        1,
        rollouts,
        advantages=learner.algorithm.advantages(rewards, rollouts.group),
        kept=learner.algorithm.keep(rewards, rollouts.group),
        rewards=rewards,
        progress=0.0,
        max_new_tokens=LONGEST,
    )


def _cpu_seconds() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


if __name__ == "__main__":
    main()
