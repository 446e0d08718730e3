"""Whether a machine without a GPU has enough memory for a model, before it is loaded.

Without this check Linux kills some process when memory runs out, and nobody learns why. All figures are lower
bounds (weights and caches only), so a job that is refused could not have run.
"""

import json
from pathlib import Path

from powermean.engine_selection import CPU_CACHE_GIB, EngineName

GIB = 1 << 30

_MEMINFO = Path("/proc/meminfo")
_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/sys/fs/cgroup")  # version 2; with another version the machine's own memory counts
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def weight_bytes(folder: Path, bytes_per_number: int) -> int:
    """Bytes of the loaded weights; their size in the files if the config doesn't name their type."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text())
        kind = config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        kind = None
    return stored * bytes_per_number // _BYTES.get(str(kind), bytes_per_number)


def engine_bytes(engine: EngineName, folder: Path, bytes_per_number: int) -> int:
    """The least memory an engine needs on a CPU: its weights and, with vLLM, the key/value cache."""
    cache = CPU_CACHE_GIB * GIB if engine == "vllm" else 0
    return weight_bytes(folder, bytes_per_number) + cache


def total_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory that processes here may use in total; None if unknown."""
    return _least(_meminfo(meminfo, "MemTotal"), _number(cgroup / "memory.max"))


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory available now; None if unknown."""
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    # The group's usage includes cached files, which are evicted when memory is needed.
    cached = _statistic(cgroup / "memory.stat", "inactive_file") or 0
    left = None if limit is None or used is None else limit - used + cached
    return _least(_meminfo(meminfo, "MemAvailable"), left)


def kills(cgroup: Path = _CGROUP, vmstat: Path = _VMSTAT) -> int | None:
    """Processes that the kernel has killed so far because memory ran out; None if unknown."""
    mine = _statistic(cgroup / "memory.events", "oom_kill")
    return _statistic(vmstat, "oom_kill") if mine is None else mine


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / GIB:.1f} GiB"


def _least(*found: int | None) -> int | None:
    return min((one for one in found if one is not None), default=None)


def _meminfo(path: Path, name: str) -> int | None:
    found = _statistic(path, f"{name}:")
    return None if found is None else found << 10


def _statistic(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _number(path: Path) -> int | None:
    """The number in the file; None for `max` and if there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
