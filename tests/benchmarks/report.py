"""What was measured, on which machine, against which bound."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure.

    Attributes:
        bound: what it must not pass; None where it is told for information only.
        is_rate: more is better.
        best: the best round; the median of the rounds is what counts.
    """

    name: str
    unit: str
    median: float
    best: float
    rounds: int
    bound: float | None = None
    is_rate: bool = False

    @property
    def holds(self) -> bool:
        """Whether the median keeps the bound."""
        if self.bound is None:
            return True
        return self.median >= self.bound if self.is_rate else self.median <= self.bound


def summarised(
    name: str,
    rounds: list[float],
    unit: str,
    *,
    scale: float = 1.0,
    bound: float | None = None,
    is_rate: bool = False,
) -> Row:
    """A row from what each round gave, in seconds (or what `scale` turns into `unit`)."""
    values = [value * scale for value in rounds]
    return Row(
        name=name,
        unit=unit,
        median=statistics.median(values),
        best=max(values) if is_rate else min(values),
        rounds=len(values),
        bound=bound,
        is_rate=is_rate,
    )


@dataclass(slots=True)
class Report:
    """The rows of one run.

    Attributes:
        tables: Markdown that stands below the rows.
    """

    rows: list[Row] = field(default_factory=list[Row])
    tables: list[str] = field(default_factory=list[str])
    load_at_start: float = field(default_factory=lambda: os.getloadavg()[0])

    def add(self, *rows: Row) -> None:
        """Take rows, then fail where one does not hold: all of them are in the table."""
        self.rows += rows
        missed = [
            f"{row.name}: {row.median:.4g} {row.unit}, bound {row.bound:g}"
            for row in rows
            if not row.holds
        ]
        assert not missed, "; ".join(missed)

    def to_markdown(self) -> str:
        """The table, below what one has to know of the machine."""
        lines = [
            f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: CPython "
            f"{platform.python_version()}, {platform.system()} {platform.release()}, "
            f"{os.cpu_count()} cores, load {self.load_at_start:.2f} at the start and "
            f"{os.getloadavg()[0]:.2f} at the end (the benchmarks' own part included).",
            "Bytecode is on (PYTHONDONTWRITEBYTECODE is unset in every child). The two sides of a "
            "comparison took turns in one run; medians of rounds. A shared machine is noisy: "
            "ratios say more than times.",
            "",
            "| measure | median | best round | bound | holds |",
            "|---|---:|---:|---:|---|",
        ]
        for row in self.rows:
            sign = "≥" if row.is_rate else "≤"
            bound = f"{sign} {row.bound:g} {row.unit}" if row.bound is not None else ""
            holds = "" if row.bound is None else "yes" if row.holds else "NO"
            lines.append(
                f"| {row.name} | {row.median:.4g} {row.unit} | {row.best:.4g} | {bound} | {holds} |"
            )
        return "\n\n".join(["\n".join(lines), *self.tables])

    def write(self, path: Path) -> None:
        """Write the table, and the same as JSON beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_markdown() + "\n", "utf-8")
        data = [{**asdict(row), "holds": row.holds} for row in self.rows]
        path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
