"""Any cluster and any line of jobs, for the planner."""

from typing import Any

from hypothesis import strategies as st

from server.jobs.demand import AdapterNeed
from server.placement.state import (
    ClusterState,
    NodeCapacity,
    Plan,
    SharedEngine,
    Start,
    WaitingEngine,
    WaitingJob,
)


def node(
    node_id: str,
    *,
    slots: int = 0,
    gpus: int = 0,
    free_slots: int | None = None,
    free: int | None = None,
    vllm: bool = False,
):
    uuids = tuple(f"{node_id}-{i}" for i in range(gpus))
    return NodeCapacity(
        id=node_id,
        cpu_slots=slots,
        gpus=gpus,
        free_cpu_slots=slots if free_slots is None else free_slots,
        free_gpus=uuids if free is None else uuids[:free],
        engines=("transformers", "vllm") if vllm else ("transformers",),
    )


def engine(name: str, node_id: str | None = "a", **changes: Any) -> SharedEngine:
    made: dict[str, Any] = {"model": "m", "dtype": "float32", "state": "ready", "max_adapters": 2}
    made |= {"max_lora_rank": 16, "reach": node_id}
    return SharedEngine(id=name, name=name, node=node_id, **(made | changes))


def lora(
    name: str,
    *,
    rank: int = 8,
    tokens: int = 100,
    required: bool = False,
    gpus: int = 0,
    project: str = "ours",
) -> WaitingJob:
    need = AdapterNeed("m", "float32", rank, tokens, required)
    return WaitingJob(name, gpus, adapter=need, project=project)


@st.composite
def nodes(draw: st.DrawFn) -> list[NodeCapacity]:
    made = []
    for number in range(draw(st.integers(0, 5))):
        slots, gpus = draw(st.integers(0, 4)), draw(st.integers(0, 8))
        free_slots, free = draw(st.integers(0, slots)), draw(st.integers(0, gpus))
        vllm = draw(st.booleans())
        made.append(node(f"n{number}", slots=slots, gpus=gpus, free_slots=free_slots, free=free, vllm=vllm))
    return made


@st.composite
def engines(draw: st.DrawFn, found: list[NodeCapacity]) -> list[SharedEngine]:
    made = []
    for number in range(draw(st.integers(0, 3)) if found else 0):
        on = draw(st.sampled_from([n.id for n in found]))
        taken = draw(
            st.sets(st.sampled_from([f"job{i}" for i in range(4)] + ["other1", "other2"]), max_size=3)
        )
        made.append(
            engine(
                f"engine{number}",
                on,
                model=draw(st.sampled_from(["m", "other"])),
                state=draw(st.sampled_from(["ready", "ready", "starting", "failed"])),
                max_adapters=draw(st.integers(max(1, len(taken)), 4)),
                max_lora_rank=draw(st.sampled_from([8, 16])),
                max_tokens=draw(st.sampled_from([None, 50, 200])),
                reach=draw(st.sampled_from([on, None])),
                jobs=frozenset(taken),
                projects=frozenset(draw(st.sampled_from([(), (), ("ours",), ("ours", "theirs")]))),
            )
        )
    return made


@st.composite
def needs(draw: st.DrawFn) -> AdapterNeed | None:
    if draw(st.booleans()):
        return None
    dtype, rank = draw(st.sampled_from(["float32", "bfloat16"])), draw(st.sampled_from([4, 8, 16, 32]))
    return AdapterNeed("m", dtype, rank, draw(st.sampled_from([40, 100, 300])), draw(st.booleans()))


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    found = draw(nodes())
    jobs = [
        WaitingJob(
            f"job{number}",
            gpus=(gpus := draw(st.integers(0, 9))),
            rollout_gpus=draw(st.integers(0, 2)) if gpus else 0,
            avoid=frozenset(draw(st.sets(st.sampled_from(["n0", "n1", "n2"])))),
            vllm=draw(st.booleans()),
            adapter=draw(needs()),
            project=draw(st.sampled_from(["ours", "theirs"])),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    unplaced = [
        WaitingEngine(
            f"new{number}",
            gpus=draw(st.integers(0, 2)),
            node=draw(st.sampled_from([None, None, "n0", "n9"])),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    return ClusterState(found, jobs, draw(engines(found)), unplaced)


def texts(made: Plan) -> dict[str, str]:
    return {job_id: wait.text for job_id, wait in made.why.items()}


def on_engine(start: Start) -> str | None:
    return start.allocations[1].engine_id
