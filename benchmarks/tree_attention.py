"""Attention in token trees on a CPU, by a mask or by chains: `python benchmarks/tree_attention.py`.

A layer's forward and backward pass with SmolLM2's heads in float32, and what is made once for all layers of a
micro-batch: the mask, or the chains' nodes. The ratio is that of a micro-batch of 30 layers, by which
trainer/policy/tree_attention.py chooses. Both ways take turns; medians.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from gpu_bench import SIZE, rollouts
from rollouts_table import Table, ratio
from torch import Tensor

from trainer.defaults import DENSE_UP_TO
from trainer.policy.chains import by_chains
from trainer.policy.token_tree import Attend, TokenTree, micro_batches
from trainer.policy.tree_attention import dense

HEADS, KEY_HEADS, WIDTH, LAYERS = 9, 3, 64, 30
# Tokens of prompts and completions, groups of 8: of the main job's size first.
SHAPES = ((10, 6, 2), (10, 6, 4), (10, 6, 8), (64, 64, 1), (64, 256, 1), (64, 64, 4), (256, 512, 1))
WAYS: dict[str, Callable[[TokenTree], Attend]] = {"dense": dense, "chains": by_chains}


def tree_of(prompt: int, completion: int, groups: int) -> TokenTree:
    """Random completions, which share their prompts alone."""
    given = rollouts(49152, prompt, completion, groups=groups)
    (tree,) = micro_batches(given.trajectories(range(groups * SIZE)), 1 << 20)
    return tree


def timed(tree: TokenTree, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds to build a way, and of a layer, by way."""
    chance = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, tree.size, WIDTH, generator=chance).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    upstream = torch.randn(inputs[0].shape, generator=chance)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            began = time.perf_counter()
            attend = way(tree)
            built = time.perf_counter()
            layer(attend, inputs, upstream)
            if number:  # the first round warms up
                found[name].append((built - began, time.perf_counter() - built))
    return {name: (median(b for b, _ in seen), median(s for _, s in seen)) for name, seen in found.items()}


def layer(attend: Attend, inputs: list[Tensor], upstream: Tensor) -> None:
    torch.autograd.grad(attend(*inputs, None), inputs, upstream)


def table(shapes: tuple[tuple[int, int, int], ...], rounds: int) -> Table:
    columns = ("nodes", "mask ms", "its layer ms", "chains ms", "its layer ms", "chains / mask", "chosen")
    found = Table("Attention of a micro-batch", columns, left=0)
    for shape in shapes:
        tree = tree_of(*shape)
        seconds = timed(tree, rounds)
        cells = [f"{1e3 * value:.2f}" for name in WAYS for value in seconds[name]]
        mask, chains = (seconds[name][0] + LAYERS * seconds[name][1] for name in WAYS)
        chosen = "mask" if tree.size <= DENSE_UP_TO else "chains"
        found.add(str(tree.size), *cells, ratio(chains, mask), chosen)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="the smallest shapes, once: quick, says nothing")
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    shapes, rounds = (SHAPES[:2], 1) if options.tiny else (SHAPES, options.rounds)
    print(table(shapes, rounds).text())


if __name__ == "__main__":
    main()
