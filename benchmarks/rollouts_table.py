"""The tables that benchmarks/rollouts.py prints."""

from dataclasses import dataclass, field


@dataclass
class Table:
    """Rows of text under a title; the first `left` columns are aligned left, the others right."""

    title: str
    columns: tuple[str, ...]
    left: int = 2
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Raises ValueError where a column is missing."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    def text(self) -> str:
        """As Markdown, which docs take as it is."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        rule = ["-" * (width + 1) + ("-" if place < self.left else ":") for place, width in enumerate(widths)]
        head, *rows = (self._line(cells, widths) for cells in (self.columns, *self.rows))
        return "\n".join([f"{self.title}:", "", head, f"|{'|'.join(rule)}|", *rows, *self.notes])

    def _line(self, cells: tuple[str, ...], widths: list[int]) -> str:
        padded = (
            cell.ljust(width) if place < self.left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"


def ratio(value: float, base: float) -> str:
    """How many times `base` that is."""
    return f"{value / base:.2f}" if base else "-"
