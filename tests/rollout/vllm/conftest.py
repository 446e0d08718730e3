"""Engines on stand-ins for vLLM."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import ChannelMethod
from rollout.engine import Fence
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.tiny_model import tiny_config
from tests.support.vllm_stage import JOB, Make, Stage

FAKE = Path(__file__).parents[2] / "support" / "fake_vllm.py"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Starts engines on stand-ins for vLLM, by the channel's method."""
    monkeypatch.setattr(vllm_server, "require_vllm", lambda: None)
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path / "model")
    script = tmp_path / "script"
    script.mkdir()
    monkeypatch.setattr(
        vllm_server,
        "server_command",
        lambda _options, path: [sys.executable, str(FAKE), str(path), str(script)],
    )
    with ExitStack() as stack:

        def start(method: ChannelMethod, **options: Any) -> Stage:
            engine = load_engine(
                VllmOptions(tmp_path / "model", "float32", transfer=method, **options),
                fence=Fence(JOB, 1, 0),
                weights=WeightSource(None),
                deadlines=Deadlines(start=30.0, sync_step=30.0, stop=3.0),
            )
            stack.callback(engine.close)
            return Stage(engine, script)

        yield start
