"""The table that `make compat` prints: model, check, value, limit, PASS or FAIL.

Imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Report:
    """The table: one row a check."""

    rows: list[tuple[str, str, str, str, bool]] = field(default_factory=list)

    def add(self, model: str, check: str, value: object, limit: str, passed: bool) -> None:
        """Append a row."""
        self.rows.append((model, check, str(value), limit, bool(passed)))

    def same(self, model: str, check: str, got: object, expected: object) -> None:
        """Append a row that passes when the two are equal."""
        self.add(model, check, got, f"= {expected}", got == expected)

    def at_most(self, model: str, check: str, value: float, limit: float) -> None:
        """Append a row that passes up to a limit."""
        self.add(model, check, f"{value:.2g}", f"<= {limit:g}", value <= limit)

    def at_least(self, model: str, check: str, value: float, limit: float) -> None:
        """Append a row that passes from a limit on."""
        self.add(model, check, f"{value:.5g}", f">= {limit:g}", value >= limit)

    @contextmanager
    def section(self, model: str, check: str) -> Iterator[None]:
        """Turn an exception into a failed row, so that the other checks still run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever breaks is a FAIL with its reason
            self.add(model, check, f"{type(error).__name__}: {error}", "no error", False)

    def print_table(self) -> bool:
        """Print every row; return whether all passed."""
        head = ("model", "check", "value", "limit", "")
        lines = [(*row[:4], "PASS" if row[4] else "FAIL") for row in self.rows]
        widths = [max(len(line[column]) for line in [head, *lines]) for column in range(4)]
        for line in [head, tuple("-" * width for width in (*widths, 4)), *lines]:
            cells = [cell.ljust(width) for cell, width in zip(line, (*widths, 4), strict=True)]
            print("  ".join(cells).rstrip())
        failed = sum(not row[4] for row in self.rows)
        print(f"\n{len(self.rows)} checks, {failed} failed")
        return failed == 0
