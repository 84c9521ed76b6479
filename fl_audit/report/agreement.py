"""Which members attacks find together, as a square table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_audit.report.model import Agreement

_MOST_COMPARED = 20  # rows and columns: more cannot be read


@dataclass(frozen=True, slots=True)
class Cell:
    """Members that two attacks find: both, and only the one of the row."""

    both: int
    only: int

    @property
    def shade(self) -> str:
        """The share of the row's members that the column finds too, for a style sheet."""
        return f"{self.both / max(1, self.both + self.only):.2f}"


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One attack: what it finds, and its cells by column (None: itself, or not compared)."""

    label: str
    num_found: int
    cells: list[Cell | None]


@dataclass(frozen=True, slots=True)
class AgreementMatrix:
    """Which members attacks find together."""

    rows: list[MatrixRow]
    num_members: int
    num_left_out: int


def agreement_matrix(pairs: Sequence[Agreement]) -> AgreementMatrix | None:
    """A square table from pairs of attacks; None without a pair."""
    found: dict[str, int] = {}
    cells: dict[tuple[str, str], Cell] = {}
    for pair in pairs:
        found.setdefault(pair.first, pair.both + pair.only_first)
        found.setdefault(pair.second, pair.both + pair.only_second)
        cells[pair.first, pair.second] = Cell(pair.both, pair.only_first)
        cells[pair.second, pair.first] = Cell(pair.both, pair.only_second)
    if not pairs:
        return None
    labels = list(found)[:_MOST_COMPARED]
    first = pairs[0]
    return AgreementMatrix(
        rows=[
            MatrixRow(row, found[row], [None if c == row else cells.get((row, c)) for c in labels])
            for row in labels
        ],
        num_members=first.both + first.only_first + first.only_second + first.neither,
        num_left_out=len(found) - len(labels),
    )
