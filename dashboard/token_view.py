"""How a trajectory's tokens are shown: each token's colour, mark and text. Pure functions over the records.

Colours are nine fixed steps (css/tokens.css), not a continuous scale: the content-security policy allows no
inline styles, and a step means the same number in every trajectory, so trajectories can be compared.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, pairwise

from dashboard.formatting import number, signed
from powermean.contracts.token_records import TrajectoryTokens, UpdateTokens


class Colouring(StrEnum):
    """What the colours show."""

    WEIGHT = "weight"
    LOG_RATIO = "log-ratio"


# Edges between steps. The fifth step means "unchanged": a uniform weight, a ratio of 1.
EDGES = {
    Colouring.WEIGHT: (0.5, 0.8, 0.9, 0.97, 1.03, 1.1, 1.25, 2.0),  # of T * W_t
    Colouring.LOG_RATIO: (-0.7, -0.25, -0.1, -0.03, 0.03, 0.1, 0.25, 0.7),  # nats
}
CLASSES = {Colouring.WEIGHT: "w", Colouring.LOG_RATIO: "x"}


@dataclass(frozen=True)
class Token:
    """One completion token as an update saw it; its numbers are None if no update trained on it."""

    place: int
    id: int
    piece: str
    sampler_log_prob: float
    old_log_prob: float | None
    log_ratio: float | None = None
    weight: float | None = None
    relative: float | None = None  # T * W_t: 1 is a uniform weight
    clipped: bool = False
    colour: str = ""  # CSS class
    graded: bool = True

    @property
    def ratio(self) -> float | None:
        """exp(x_t), or None if it overflows."""
        if self.log_ratio is None or not self.log_ratio < 700:
            return None
        return math.exp(self.log_ratio)

    @property
    def told(self) -> str:
        """All numbers in one line, for hover and keyboard."""
        said = [f"token {self.place}", f"id {self.id}"]
        if self.log_ratio is not None:
            said += [
                f"log-ratio {signed(self.log_ratio)}",
                f"ratio {number(self.ratio)}",
                f"W {number(self.weight)}",
                f"{number(self.relative)} × uniform",
            ]
        if self.clipped:
            said.append("clipped: no gradient")
        if not self.graded:
            said.append("not graded")
        return " · ".join(said)


@dataclass(frozen=True)
class Step:
    """One step of a scale, for the legend."""

    colour: str
    label: str
    count: int


def tokens_of(
    record: TrajectoryTokens,
    update: UpdateTokens | None,
    colouring: Colouring = Colouring.WEIGHT,
    graded: int | None = None,
) -> list[Token]:
    """The completion's tokens in order, with the numbers of `update`; `graded` of its characters counted."""
    count = len(record.token_ids)
    old = record.old_log_probs or (None,) * count
    plain = [
        Token(place, *told)
        for place, told in enumerate(
            zip(record.token_ids, record.pieces, record.sampler_log_probs, old, strict=True)
        )
    ]
    if graded is not None:
        begins = accumulate(map(len, record.pieces), initial=0)
        plain = [replace(token, graded=begin < graded) for token, begin in zip(plain, begins, strict=False)]
    if update is None:
        return plain
    seen = zip(plain, update.log_ratio, update.weight, update.clipped, strict=True)
    return [_seen(token, x, weight, weight * count, clipped, colouring) for token, x, weight, clipped in seen]


def _seen(
    token: Token, x: float, weight: float, relative: float, clipped: bool, colouring: Colouring
) -> Token:
    step = bisect_right(EDGES[colouring], relative if colouring is Colouring.WEIGHT else x)
    return replace(
        token,
        log_ratio=x,
        weight=weight,
        relative=relative,
        clipped=clipped,
        colour=f"{CLASSES[colouring]}{step}",
    )


def legend(colouring: Colouring, tokens: list[Token]) -> list[Step]:
    """The scale from its lowest to its highest step, with the number of tokens in each."""
    edges = [_edge(edge, colouring) for edge in EDGES[colouring]]
    labels = [f"< {edges[0]}"]
    labels += [f"{low} to {high}" for low, high in pairwise(edges)]
    labels.append(f"≥ {edges[-1]}")
    counts = dict.fromkeys((f"{CLASSES[colouring]}{step}" for step in range(len(labels))), 0)
    for token in tokens:
        counts[token.colour] += 1
    return [Step(colour, label, counts[colour]) for label, colour in zip(labels, counts, strict=True)]


def _edge(value: float, colouring: Colouring) -> str:
    if colouring is Colouring.LOG_RATIO:
        return f"{value:+g}".replace("-", "−")
    return f"{value:g}"


@dataclass(frozen=True)
class Share:
    """Where the gradient is: the heaviest tokens, and what the clip removed."""

    heaviest: int  # smallest number of tokens with half of the remaining gradient
    active: int
    lost: float  # weight of clipped tokens, whose gradient is zero


def share(tokens: list[Token]) -> Share | None:
    """None if no update trained on the tokens."""
    left = sorted((t.weight for t in tokens if t.weight is not None and not t.clipped), reverse=True)
    known = [t for t in tokens if t.weight is not None]
    if not known:
        return None
    half, held, heaviest = math.fsum(left) / 2, 0.0, 0
    for weight in left:
        if held >= half:
            break
        held += weight
        heaviest += 1
    return Share(
        heaviest, len(left), math.fsum(t.weight for t in known if t.clipped and t.weight is not None)
    )
