"""The laws of trees, of finite gradients and of the objectives, on CUDA: what benchmarks/gpu.py measures.

`pytest -m gpu`. The compiler takes most of the time.
"""

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize(
    "section",
    ["gpu_laws:laws", "gpu_laws:nan_hunt", "gpu_laws:objective", "gpu_laws:learner", "gpu_loop:loop"],
)
def test_a_section_of_the_gpu_benchmark_finds_nothing_wrong(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module, _, name = section.partition(":")
    bench = importlib.import_module("gpu_bench").Bench(tiny=False, out=None, budget_s=900)
    bench.run(name, lambda: getattr(importlib.import_module(module), name)(bench), 900)
    assert bench.failures == []
