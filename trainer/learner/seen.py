"""What the micro-batches of an update add up to.

It stays on the device until the update is over: a micro-batch that waited for a number would have the GPU
wait too.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.learner.update_report import RECORDED, SeenTokens
from trainer.objectives import Distance, LossOutput
from trainer.ranks.exchange import Ranks


@dataclass
class Seen:
    """Sums over the micro-batches so far, and what each saw of its rows."""

    count: int  # N
    beta: float
    loss: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    distance: Distance = field(default_factory=Distance)
    rows: list[Tensor] = field(default_factory=list)  # [b] each, on the CPU
    numbers: list[Tensor] = field(default_factory=list)  # [len(RECORDED), b] float64
    finite: list[Tensor] = field(default_factory=list)  # [b] bool
    tokens: list[SeenTokens] = field(default_factory=list)

    def add(self, rows: Tensor, output: LossOutput, penalty: Tensor | None, finite: Tensor) -> None:
        """One micro-batch: rows [b] of the rollout batch, and whether their log-ratios are finite [b]."""
        self.rows.append(rows)
        self.numbers.append(torch.stack([output.trajectories[name] for name in RECORDED]))
        self.finite.append(finite)
        self.loss = self.loss + output.recorded_loss
        self.distance += output.distance
        if penalty is not None:
            self.loss = self.loss + penalty
            self.kl = self.kl + penalty / self.beta

    def record(self, rows: Tensor, kept: Tensor, log_ratio: Tensor, output: LossOutput) -> None:
        """Keep what the objective saw of the tokens of those rows [b] that are `kept` [b] bool, CPU."""
        if kept.any():
            here = kept.nonzero()[:, 0].to(log_ratio.device, non_blocking=True)
            self.tokens.append(
                SeenTokens(
                    rows=rows[kept],
                    log_ratio=log_ratio[here].float(),
                    weight=output.token_weights[here].float(),
                    clipped=output.clipped[here],
                )
            )

    def broken(self) -> Tensor:
        """Bool [N]: log-ratios are not finite. The first look at the device in an update."""
        found = torch.zeros(self.count, dtype=torch.bool)
        if self.rows:
            found[torch.cat(self.rows)] = ~torch.cat(self.finite).cpu()
        return found

    def of_all(self, ranks: Ranks, rows: Tensor, mine: range, width: int) -> "Seen":
        """What all ranks have seen, of `rows` [n], of which those of `mine` are this rank's."""
        if ranks.world.alone:
            return self
        parts = (self.loss, self.kl, self.distance.to_grpo, self.distance.of_gmpo, self.distance.of_grpo)
        sums = ranks.total(torch.tensor([float(part) for part in parts], dtype=torch.float64))
        numbers = self._table()[:, rows].T
        return Seen(
            count=self.count,
            beta=self.beta,
            loss=sums[0],
            kl=sums[1],
            distance=Distance(*sums[2:]),
            rows=[rows],
            numbers=[ranks.merged(numbers, mine).T],
            tokens=self._tokens_of_all(ranks, width),
        )

    def _tokens_of_all(self, ranks: Ranks, width: int) -> list[SeenTokens]:
        kept = torch.zeros(self.count, dtype=torch.bool)
        for part in self.tokens:
            kept[part.rows] = True
        rows = ranks.any(kept).nonzero()[:, 0]
        if not len(rows):
            return []
        place = torch.zeros(self.count, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        seen = torch.zeros(3, len(rows), width, dtype=torch.float32)
        for part in self.tokens:
            for number, values in enumerate((part.log_ratio, part.weight, part.clipped)):
                seen[number, place[part.rows], : values.shape[1]] = values.float().cpu()
        log_ratio, weight, clipped = ranks.total(seen)
        return [SeenTokens(rows, log_ratio, weight, clipped.bool())]

    def values(self) -> dict[str, Tensor]:
        """name -> [N] float64 on the CPU, NaN for rows that were not seen."""
        return dict(zip(RECORDED, self._table(), strict=True))

    def _table(self) -> Tensor:
        found = torch.full((len(RECORDED), self.count), torch.nan, dtype=torch.float64)
        if self.rows:
            found[:, torch.cat(self.rows)] = torch.cat(self.numbers, dim=1).cpu()
        return found

    def tokens_on_cpu(self) -> list[SeenTokens]:
        return [
            SeenTokens(one.rows, one.log_ratio.cpu(), one.weight.cpu(), one.clipped.cpu())
            for one in self.tokens
        ]
