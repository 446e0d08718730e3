"""Real ranks on this machine: processes that are forked from one that has imported PyTorch, joined by gloo."""

import importlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.ranks.world import World

Case = Callable[[World, Path], None]
TIMEOUT_S = 60.0


def run_cases(module: str, size: int) -> dict[str, list[str]]:
    """Run each of a module's CASES on all ranks, in order; what each rank raised, by case ("" for nothing).

    The module is imported once for all ranks. Each case gets a folder of its own, which its ranks share.
    After one that failed no other is run: its ranks may be out of step.
    """
    cases: Mapping[str, Case] = importlib.import_module(module).CASES
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(module, rank, size, Path(folder)), daemon=True)
            for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(TIMEOUT_S * 3)
            if rank.is_alive():
                rank.kill()
        return {name: [_outcome(Path(folder) / name, rank) for rank in range(size)] for name in cases}


def _outcome(folder: Path, rank: int) -> str:
    file = folder / f"{rank}.outcome"
    return file.read_text() if file.exists() else "it did not come to an end"


def _rank(module: str, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT_S)
    )
    for name, case in importlib.import_module(module).CASES.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        try:
            case(World(rank, size, rank, size), own)
            why = ""
        except BaseException:  # noqa: BLE001 (the test shows it)
            why = traceback.format_exc()
        (own / f"{rank}.outcome").write_text(why)
        if why:
            os._exit(1)
        dist.barrier()
    dist.destroy_process_group()
