"""One training step on 8 to 128 GPUs, from measured and assumed parts. None was run there.

Work is fixed, so more GPUs finish it sooner (strong scaling). Sampling and updating alternate, as they do
with max_staleness 0. What ranks exchange overlaps with what they compute: only what is longer counts.
"""

from dataclasses import dataclass, fields
from math import ceil
from typing import ClassVar

from trainer.preflight.model_facts import ModelFacts, of_name

SIZES = {"Qwen/Qwen2.5-7B": (8, 16, 32, 64, 128), "Qwen/Qwen2.5-32B": (16, 32, 64, 128)}
LOCAL = 8  # GPUs of a node
REPLICA = {"Qwen/Qwen2.5-7B": 1, "Qwen/Qwen2.5-32B": 4}  # GPUs of an engine
GPU_BYTES, SHARE = 79.6 * 2**30, 0.4


@dataclass(frozen=True)
class Given:
    """A number, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Numbers:
    """Numbers by name."""

    def rows(self) -> list[list[str]]:
        """For a table."""
        found = [(field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)]
        return [[name, f"{one.value:,g} {one.unit}", one.source] for name, one in found]


@dataclass(frozen=True)
class Cluster(Numbers):
    """Nodes of eight H100s."""

    peak: Given = Given(989, "TFLOP/s", "H100, dense bfloat16, data sheet")
    MFU: Given = Given(33, "%", "0.5B on one H200, [hardware.md](hardware.md#gpu); larger models not run")
    GPU_memory: Given = Given(3.35, "TB/s", "H100, data sheet")
    decode_efficiency: Given = Given(60, "%", "assumed: of that bandwidth, in decoding")
    NVLink: Given = Given(315, "GB/s", "assumed: 70 % of 450 each way")
    network: Given = Given(35, "GB/s", "assumed: 70 % of 400 Gb/s for each GPU (InfiniBand NDR)")
    tensor_parallel: Given = Given(20, "µs", "assumed: an all-reduce of a decoding step, two in a layer")
    publishing: Given = Given(5, "GB/s", "assumed: weights from rank 0's node to all engines, by host memory")


@dataclass(frozen=True)
class Work(Numbers):
    """DAPO's batch, with shorter completions (examples/recipes/math-dapo.yaml)."""

    prompts: Given = Given(512, "", "DAPO")
    group: Given = Given(16, "", "DAPO")
    updates: Given = Given(16, "", "DAPO")
    mean_completion: Given = Given(4000, "tokens", "assumed")
    longest_completion: Given = Given(20480, "tokens", "DAPO")
    micro_batch: Given = Given(21504, "tokens", "one trajectory of the longest, with checkpointing")


CLUSTER, WORK = Cluster(), Work()


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts: each is what the clock shows, after overlap."""

    PARTS: ClassVar = ("sampling", "updating", "gathering", "reducing", "publishing")
    model: str
    gpus: int
    how: str
    sampling: float
    updating: float
    gathering: float
    reducing: float
    publishing: float
    communication: float  # of the ranks' passes, before overlap

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in self.PARTS)


def simulate(name: str, gpus: int) -> Step:
    """One step of the job on so many GPUs, in nodes of eight."""
    model = of_name(name)
    assert model is not None
    nodes = gpus // LOCAL
    hybrid = nodes > 1 and 16 * model.numbers / LOCAL < 0.6 * (1 - SHARE) * GPU_BYTES
    shards = LOCAL if hybrid else gpus
    tokens = WORK.prompts.value * WORK.group.value * WORK.mean_completion.value / gpus  # of a rank
    passes = ceil(tokens / WORK.updates.value / WORK.micro_batch.value)  # of an update
    flops = CLUSTER.peak.value * 1e12 * CLUSTER.MFU.value / 100
    # Forward, forward again, backward; and a pass that scores, for all but the first of the minibatches.
    updating = tokens * model.numbers * (8 + 2 * (1 - 1 / WORK.updates.value)) / flops
    link = 1e9 * (CLUSTER.NVLink if shards <= LOCAL else CLUSTER.network).value
    gathers = WORK.updates.value * passes * 3  # forward, backward, scoring; in bfloat16
    gathering = gathers * 2 * model.numbers * (1 - 1 / shards) / link
    reducing = WORK.updates.value * passes * 4 * model.numbers * (1 - 1 / shards) / link
    across = 0.0
    if hybrid:  # each node's sums, in each update's last pass
        across = WORK.updates.value * 2 * 4 * model.numbers / LOCAL * (1 - 1 / nodes)
        across /= 1e9 * CLUSTER.network.value
    hidden = max(0.0, 1 - updating / (gathering + reducing))  # the share that computing does not cover
    return Step(
        model=name,
        gpus=gpus,
        how="hybrid" if hybrid else "shard",
        sampling=_sampling(model, gpus, REPLICA[name]),
        updating=updating,
        gathering=gathering * hidden,
        reducing=reducing * hidden + across,
        publishing=2 * model.numbers / (1e9 * CLUSTER.publishing.value),
        communication=gathering + reducing + across,
    )


def _sampling(model: ModelFacts, gpus: int, parts: int) -> float:
    """Seconds until the last completion is there: by throughput, no less than the longest one alone takes."""
    config, work = model.config, WORK
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    cache = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * size  # bytes a token
    room = SHARE * GPU_BYTES * parts - 2 * model.numbers
    engines = gpus // parts
    rows = work.prompts.value * work.group.value / engines
    at_once = min(rows, room / (cache * work.mean_completion.value / 2))
    seconds = _decode(model, parts, at_once, cache * work.mean_completion.value / 2)
    by_throughput = rows / at_once * work.mean_completion.value * seconds
    alone = work.longest_completion.value * _decode(
        model, parts, 1, cache * work.longest_completion.value / 2
    )
    return max(by_throughput, alone)


def _decode(model: ModelFacts, parts: int, rows: float, cache: float) -> float:
    """Seconds of a token for each of so many rows: weights and caches are read once, spread over the GPUs."""
    speed = CLUSTER.GPU_memory.value * 1e12 * CLUSTER.decode_efficiency.value / 100
    read = (2 * model.numbers + rows * cache) / parts / speed
    computed = rows * 2 * model.numbers / parts / (CLUSTER.peak.value * 1e12 * 0.4)
    talk = 2 * model.config["num_hidden_layers"] * CLUSTER.tensor_parallel.value * 1e-6 * (parts > 1)
    return max(read, computed) + talk
