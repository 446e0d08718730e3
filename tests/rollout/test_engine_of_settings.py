"""Which engine the command line leads to: whole weights, a job's own adapter, or adapters of many."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rollout import __main__ as program
from rollout.engine import EngineError
from rollout.settings import parse_settings
from rollout.transformers.engine import TransformersEngine


class Started:
    """Records what would have been started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, adaptable: bool) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(program, "takes_adapters", lambda _folder: adaptable)
        monkeypatch.setattr(program, "load_adapter_engine", self._record("adapters"))
        monkeypatch.setattr(program.vllm, "load_engine", self._record("whole"))

    def _record(self, kind: str) -> Any:
        return lambda options, **rest: self.calls.append((kind, rest | {"options": options}))

    def of(self, *flags: str) -> tuple[str, dict[str, Any]]:
        common = ("--model", "m", "--public-key", "k", "--engine", "vllm")
        program._load(parse_settings([*common, *flags]))
        return self.calls[-1]


def test_without_a_job_adapters_of_all_jobs_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = tmp_path / "jobs.json"
    jobs.write_text('["job-1"]')
    kind, given = Started(monkeypatch, adaptable=True).of(
        "--max-adapters", "3", "--max-lora-rank", "64", "--jobs-file", str(jobs)
    )
    assert (kind, given["slots"], given["only"]) == ("adapters", 3, None)
    assert given["options"].max_lora_rank == 64
    assert given["running"]() == {"job-1"}


def test_a_jobs_own_engine_takes_its_adapter_or_merged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--job-id", "job-1", "--attempt", "2", "--max-adapters", "1")
    kind, given = Started(monkeypatch, adaptable=True).of(*flags)
    assert (kind, given["slots"], given["only"].job_id, given["only"].attempt) == ("adapters", 1, "job-1", 2)
    kind, given = Started(monkeypatch, adaptable=False).of(*flags)
    assert (kind, given["fence"].attempt) == ("whole", 2)
    assert Started(monkeypatch, adaptable=True).of(*flags[:-2])[0] == "whole"


def test_jobs_can_not_share_a_model_without_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError) as caught:
        Started(monkeypatch, adaptable=False).of("--max-adapters", "3")
    assert caught.value.code == "adapters_unsupported"


def test_where_auto_takes_transformers_the_adapter_is_merged(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "choose", lambda *_, **__: "transformers")
    flags = ["--model", str(tiny_folder), "--public-key", "k", "--job-id", "job-1", "--max-adapters", "1"]
    try:
        engine = program._load(parse_settings(flags))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert isinstance(engine, TransformersEngine)
    assert engine.state().adapters is None
