"""The tables that benchmarks/rollouts.py prints."""

from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of text under a title; the first two columns are aligned left, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Raises ValueError where a column is missing."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    def text(self) -> str:
        """As Markdown, which docs take as it is."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        rule = (
            "|"
            + "|".join(
                "-" * (width + 2) if i < 2 else "-" * (width + 1) + ":" for i, width in enumerate(widths)
            )
            + "|"
        )
        printed = [_line(line, widths) for line in lines]
        return "\n".join([f"{self.title}:", "", printed[0], rule, *printed[1:], *self.notes])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def ratio(value: float, base: float) -> str:
    """How many times `base` that is."""
    return f"{value / base:.2f}" if base else "-"
