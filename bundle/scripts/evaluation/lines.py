"""A statistic of a set of volumes: its value, its limit, and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

# A perfect generator goes beyond the limit of a statistic with this probability at most, and beyond that of each of the
# 15 rank correlations. At 10,000 volumes that is 0.0186 for a Kolmogorov-Smirnov statistic and 0.031 for a correlation.
ERROR_RATE = 0.002


@dataclass(frozen=True)
class Line:
    """One statistic: a line of the fidelity table.

    Args:
        value: what was found.
        reasons: how many volumes failed for which reason.
        p_value: of the test behind the value.
        pair: names of the two parameters it is of.
        standard_error: of the value.
        low: lower end of its 95% interval.
        high: upper end.
        count: volumes it rests on.
        limit: the most that its absolute value may be, or the least that it may be; ``None`` for a line to be read
            beside that of real spheres.
        least: whether the value may not be below the limit.
    """

    value: float
    reasons: Mapping[str, int] | None = None
    p_value: float | None = None
    pair: Sequence[str] | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    limit: float | None = None
    least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the value is within its limit, if there is one."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.least else abs(self.value) <= self.limit

    @property
    def bound(self) -> str:
        """The limit in words, empty without one."""
        return "" if self.limit is None else f"{'>=' if self.least else '<='} {self.limit:.4f}"

    @property
    def remark(self) -> str:
        """What is known beside the value."""
        if self.p_value is not None:
            return f"p = {self.p_value:.3f}"
        if self.pair is not None:
            return " with ".join(self.pair)
        if self.standard_error is not None:
            return f"standard error {self.standard_error:.4f}"
        if self.low is not None:
            return f"95% interval {self.low:.3f} to {self.high:.3f}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return what is known, for JSON; ``least`` and ``ok`` only where there is a limit."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: value for name, value in known.items() if value is not None}
        return known | {"ok": self.ok} if self.limit is not None else {k: v for k, v in known.items() if k != "least"}

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> Line:
        """Read back what ``as_dict`` returned."""
        return cls(**{name: value for name, value in known.items() if name != "ok"})
