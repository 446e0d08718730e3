"""Whole runs of trainer/loop with the tests' tiny model: trainer and transformers engine on the device."""

import tempfile
from pathlib import Path
from threading import Event
from typing import Any

import torch
from gpu_bench import Bench

from rollout.engine import Fence
from rollout.transformers.engine import TransformersEngine, load_engine
from rollout.weights import WeightSource
from tests.support.attempts import JOB, Played, Stage
from tests.support.tiny_model import build_tiny_model


class InProcess:
    """The engine without its service."""

    methods = ("store", "shm")

    def __init__(self, folder: Path, attempt: int, device: torch.device) -> None:
        self.engine: TransformersEngine = load_engine(
            folder,
            device=device.type,
            dtype=torch.bfloat16,
            fence=Fence(JOB, attempt, 0),
            weights=WeightSource(None, Path("/dev/shm")),
            max_model_len=None,
            max_batch_tokens=131072,
        )

    def generate(self, request: Any, timeout_s: float) -> Any:
        return self.engine.generate(request, Event())

    def publish(self, request: Any, timeout_s: float) -> Any:
        return self.engine.publish(request)

    def close(self) -> None:
        """All of it is in this process."""


def loop(bench: Bench) -> dict[str, Any]:
    """Runs of several settings; the same seed twice; resumed against whole."""
    found: dict[str, Any] = {}
    training = {"prompts_per_step": 16, "minibatches": 2, "epochs": 2}
    where: dict[str, Any] = {"resources": {"gpus": 1, "placement": "split"}}
    if bench.tiny:
        where = {"model": {"folder": "tiny", "dtype": "bfloat16"}}
    with tempfile.TemporaryDirectory() as room:
        models = Path(room) / "models"
        build_tiny_model(models / "tiny")

        def play(name: str, number: int, **spec: Any) -> Played:
            merged = where | spec
            if "model" in spec:
                merged["model"] = where.get("model", {}) | spec["model"]
            engine = InProcess(models / "tiny", number, bench.device)
            played = Stage(Path(room), models).play(number, engine=engine, **merged)
            error = played.finish.error.message if played.finish.error is not None else None
            row = {
                "outcome": played.finish.outcome,
                "error": error,
                "reward": [round(value, 3) for value in played.series("reward")],
                "publish_difference": max(played.series("publish/logp_difference_max"), default=None),
            }
            found[name] = row
            bench.line(f"loop, {name}: {row}")
            if played.finish.outcome != "finished":
                bench.failures.append(f"loop, {name}")
            return played

        steps = training | {"steps": 2 if bench.tiny else 5}
        whole = play("pmpo", 1, training=steps)
        again = play("the same seed", 2, training=steps)
        found["same seed"] = apart(whole, again)
        bench.line(f"loop, the same seed twice: {found['same seed']}")
        if bench.tiny:
            return found
        if whole.checkpoints:
            resumed = play("resumed", 3, resume=whole.checkpoints[0], training=steps)
            first = whole.checkpoints[0].step + 1
            found["resumed"] = apart(resumed, whole, first)
            bench.line(f"loop, resumed against whole from step {first}: {found['resumed']}")
        short = training | {"steps": 2}
        play("lora", 4, model={"folder": "tiny", "lora": {"rank": 8, "alpha": 16}}, training=short)
        play("checkpointing", 5, training=short | {"gradient_checkpointing": True})
        play("bfloat16 weights", 6, training=short | {"weights": "bfloat16"})
        play("kl", 7, algorithm={"name": "grpo", "beta": 0.05}, training=short)
        play("dapo", 8, algorithm={"name": "dapo"}, training=short)
        rollout = {"group_size": 8, "max_new_tokens": 4, "stop": ["\n"], "max_staleness": 1}
        play("sampling ahead", 9, training=training | {"steps": 3}, rollout=rollout)
    torch.use_deterministic_algorithms(False)  # an attempt leaves it on
    return found


def apart(one: Played, other: Played, first: int = 0) -> dict[str, Any]:
    """How many metrics differ, clocks aside, and by how much."""
    clocks = ("seconds", "time/", "tokens_per_second", "sampling/queued")
    keys = [key for key in one.metrics if key[0] >= first and not any(part in key[2] for part in clocks)]
    gaps = [abs((one.metrics[key] or 0.0) - (other.metrics.get(key) or 0.0)) for key in keys]
    return {"metrics": len(keys), "unequal": sum(gap > 0 for gap in gaps), "largest": max(gaps, default=0.0)}
