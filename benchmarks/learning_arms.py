"""The objectives that benchmarks/learning.py compares, and the conditions it compares them under."""

from dataclasses import dataclass
from math import log, log1p
from typing import Literal

from powermean.contracts.algorithms import AlgorithmSpec, Gmpo, Grpo, Holder, Pmpo, PowerMean

# Every objective at one clip range, GRPO's and HölderPO's 1 +- 0.2; GMPO and PMPO state theirs in log space.
EPSILON = 0.2
CLIP_LOW, CLIP_HIGH = -log1p(-EPSILON), log(1 + EPSILON)

Comparison = Literal["shared", "recipe"]
BOTH: tuple[Comparison, ...] = ("shared", "recipe")


@dataclass(frozen=True)
class Arm:
    """One objective, run once, and the comparisons it stands in: at the shared clip range, by its recipe."""

    name: str
    title: str
    spec: AlgorithmSpec
    shown: tuple[Comparison, ...] = ("shared",)


ARMS = (
    Arm("grpo", "GRPO", Grpo(epsilon_low=EPSILON, epsilon_high=EPSILON), BOTH),
    Arm("gmpo", "GMPO", Gmpo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)),
    Arm("pmpo-f1-1", "PMPO, f1 = 1", Pmpo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)),
    Arm(
        "pmpo-f1-0.25",
        "PMPO, f1 = 0.25",
        Pmpo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, clip_fraction_full=0.25),
    ),
    Arm(
        "pmpo-f1-0.1",
        "PMPO, f1 = 0.1",
        Pmpo(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, clip_fraction_full=0.1),
    ),
    Arm("p-0.5", "fixed p = 0.5", PowerMean(p=0.5, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)),
    Arm(
        "sqrt-f1-0.25",
        "p = sqrt(1 - f_eff), f1 = 0.25",
        Pmpo(ess_target="square_root", clip_low=CLIP_LOW, clip_high=CLIP_HIGH, clip_fraction_full=0.25),
    ),
    Arm("holder", "HölderPO", Holder(epsilon_low=EPSILON, epsilon_high=EPSILON), BOTH),
    Arm("gmpo-recipe", "GMPO", Gmpo(), ("recipe",)),
    Arm("pmpo-recipe", "PMPO, f1 = 1", Pmpo(), ("recipe",)),
)


@dataclass(frozen=True)
class Condition:
    """How far the policy moves from the one that sampled."""

    name: str
    minibatches: int
    epochs: int
    lag: int = 0  # steps by which the weights that sample are behind

    @property
    def title(self) -> str:
        late = f", rollouts {self.lag} steps old" if self.lag else ""
        return f"{self.minibatches} x {self.epochs} updates{late}"


CONDITIONS = (Condition("2x2", 2, 2), Condition("4x2", 4, 2), Condition("2x2-lag2", 2, 2, lag=2))
