"""What was paid for, by market."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paid:
    """Seconds of machines that were paid for, on `spot` and `on_demand`."""

    spot: float
    on_demand: float

    def dollars(self, spot: float, on_demand: float) -> float:
        """Return the dollars at these prices of an hour."""
        return (self.spot * spot + self.on_demand * on_demand) / 3600
