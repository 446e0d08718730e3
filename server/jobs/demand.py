"""What a job demands of the cluster: derived from its spec once, at its submission, and stored with it."""

from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from math import ceil

from pydantic import TypeAdapter

from powermean.contracts.forks import Origin
from powermean.contracts.job import JobSpec
from powermean.contracts.revisions import FIRST, needed


@dataclass(frozen=True)
class AdapterNeed:
    """What a LoRA job that may share an engine needs from it."""

    model: str
    dtype: str
    rank: int
    tokens: int  # longest prompt with its completion; when submitted, what is known of it
    required: bool  # must not start its own engine instead
    same_host: bool = False  # as the trainer's


@dataclass(frozen=True)
class Demand:
    """0 `gpus` means a CPU slot."""

    gpus: int  # of the trainer
    rollout_gpus: int  # of its own engine; 0: the engine shares the trainer's
    vllm: bool  # its own engine must be vLLM
    adapter: AdapterNeed | None  # None: it gets its own engine
    gpu_type: str | None = None  # part of the GPUs' name
    gpu_memory_mb: int = 0  # of each GPU, at least
    labels: tuple[tuple[str, str], ...] = ()  # of its nodes
    nodes: int = 1  # that train together
    revision: int = FIRST  # of the contracts, that its workers have to know


_json = TypeAdapter(Demand)
_LATER = {  # not in the texts of jobs from before
    one.name: one.default for one in fields(Demand) if one.default is not MISSING
}


def demand_of(spec: JobSpec, origin: Origin | None = None) -> str:
    """What the spec demands, as a job's row has it: equal demands are equal texts."""
    demand = Demand(
        gpus=spec.resources.gpus,
        rollout_gpus=spec.rollout_gpus,
        vllm=spec.rollout.needs_vllm,
        adapter=_adapter_need(spec, origin),
        gpu_type=spec.resources.gpu_type.lower() if spec.resources.gpu_type else None,
        gpu_memory_mb=ceil((spec.resources.gpu_memory_gib or 0) * 1024),
        labels=tuple(sorted(spec.resources.node_labels.items())),
        nodes=spec.resources.nodes,
        revision=needed(spec),
    )
    as_before = {name for name, usual in _LATER.items() if getattr(demand, name) == usual}
    return _json.dump_json(demand, exclude=as_before).decode()


@lru_cache(maxsize=4096)
def stored_demand(text: str) -> Demand:
    """The demand in a job's row. Most jobs demand what others do."""
    return _json.validate_json(text)


def model_key(name: str | None, folder: str | None) -> str:
    """Identifies a model by name or folder."""
    return name or f"folder {folder}"


def resolved_dtype(dtype: str, gpus: int) -> str:
    """The type that `auto` stands for."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if gpus else "float32"


def _adapter_need(spec: JobSpec, origin: Origin | None) -> AdapterNeed | None:
    if origin is not None and not origin.over_first_model:
        return None  # no declared engine serves a job's model
    first = spec.model if origin is None else origin.first_model
    if spec.model.lora is None or spec.rollout.sharing == "own" or spec.rollout.engine == "transformers":
        return None
    return AdapterNeed(
        model=model_key(first.name, first.folder),
        dtype=resolved_dtype(spec.model.dtype, spec.resources.gpus),
        rank=spec.model.lora.rank,
        tokens=spec.rollout.max_new_tokens + 1,
        required=spec.rollout.sharing == "shared",
        same_host=spec.rollout.publish == "shm",
    )
