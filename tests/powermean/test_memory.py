"""Memory is counted from files and from what the kernel says; nothing that could work is refused."""

import json
from pathlib import Path

import pytest

from powermean.memory import GIB, engine_bytes, free_bytes, gib, kills, total_bytes, weight_bytes
from rollout import __main__ as program
from rollout.engine import EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"\0" * 1000)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\0" * 5000)
    return tmp_path


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       2048 kB\nMemFree:        10 kB\nMemAvailable:    1024 kB\n")
    return path


def test_weights_are_counted_in_the_type_that_they_are_loaded_in(folder: Path) -> None:
    assert weight_bytes(folder, 2) == 2000
    assert weight_bytes(folder, 4) == 4000
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    assert weight_bytes(folder, 2) == 1000
    for unsaid in ("{}", "no json", '{"dtype": "int3"}', "[]"):
        (folder / "config.json").write_text(unsaid)
        assert weight_bytes(folder, 4) == 2000


def test_only_vllm_has_a_cache_of_a_known_size(folder: Path) -> None:
    assert engine_bytes("transformers", folder, 2) == 2000
    assert engine_bytes("vllm", folder, 2) == 2000 + GIB


def test_the_smaller_of_machine_and_control_group_counts(meminfo: Path, tmp_path: Path) -> None:
    assert total_bytes(meminfo, tmp_path) == 2048 << 10
    assert free_bytes(meminfo, tmp_path) == 1024 << 10
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert total_bytes(meminfo, tmp_path) == 2048 << 10
    assert free_bytes(meminfo, tmp_path) == 1024 << 10
    (tmp_path / "memory.max").write_text("1000000\n")
    assert total_bytes(meminfo, tmp_path) == 1_000_000
    assert free_bytes(meminfo, tmp_path) == 100_000
    (tmp_path / "memory.stat").write_text("active_file 7\ninactive_file 50000\n")
    assert free_bytes(meminfo, tmp_path) == 150_000


def test_where_nothing_says_nothing_is_known(tmp_path: Path) -> None:
    assert total_bytes(tmp_path / "none", tmp_path) is None
    assert free_bytes(tmp_path / "none", tmp_path) is None


def test_an_engine_that_cannot_fit_is_not_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "free_bytes", lambda: 3999)
    program.check_memory("transformers", folder, "bfloat16")
    with pytest.raises(EngineError, match=r"transformers engine needs at least .* are free") as refused:
        program.check_memory("transformers", folder, "float32")
    assert refused.value.code == "engine_memory"
    monkeypatch.setattr(program, "free_bytes", lambda: GIB // 2)
    with pytest.raises(EngineError, match=r"at least 1\.0 GiB .* 0\.5 GiB are free"):
        program.check_memory("vllm", folder, "bfloat16")
    monkeypatch.setattr(program, "free_bytes", lambda: None)
    program.check_memory("vllm", folder, "float32")


def test_what_the_kernel_killed_here_is_counted_or_else_on_the_machine(tmp_path: Path) -> None:
    cgroup, vmstat = tmp_path / "cgroup", tmp_path / "vmstat"
    assert kills(cgroup, vmstat) is None
    vmstat.write_text("nr_free_pages 5\noom_kill 7\n")
    assert kills(cgroup, vmstat) == 7
    cgroup.mkdir()
    (cgroup / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert kills(cgroup, vmstat) == 2


def test_sizes_are_told_in_gib() -> None:
    assert gib(3 * GIB // 2) == "1.5 GiB"
