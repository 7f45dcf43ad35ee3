"""What a run has cost: each machine's part and the total, as numbers and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.console.formats import duration
from pipeline.cost.timeline import CAUSES, STAGES, STEPS

USEFUL = (STEPS, STAGES)


@dataclass(frozen=True)
class MachineCost:
    """One machine's part of the cost.

    Attributes:
        id: of the rental; for a machine at home, its host name.
        count: how many GPUs it has.
        price: dollars per hour; None if not known.
        begin, end: when paying for it began and ended (Unix seconds).
        seconds: by cause.
        dollars: None if its price is not known.
        unpriced_hours: the hours of its processes whose price is not known.
        to_first_step: seconds from `begin` to its first step; None if it never trained.
        phases: the seconds of each part of that time, by name; some overlap.
        epochs: under which it owned the run; empty if it never did.
    """

    id: str
    rented: bool
    host: str
    cloud: str | None
    region: str | None
    gpu: str | None
    count: int
    spot: bool | None
    price: float | None
    begin: float
    end: float
    seconds: Mapping[str, float]
    dollars: float | None
    unpriced_hours: float
    to_first_step: float | None
    phases: Mapping[str, float]
    epochs: tuple[int, ...]

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def phases_in_words(self) -> str:
        """Return ` (machine up 31 s, install 48 s, …)`: what the first step waited for.

        Empty if not known.
        """
        parts = ", ".join(f"{name} {duration(s)}" for name, s in self.phases.items() if s >= 0.5)
        return f" ({parts})" if parts else ""

    def describe(self) -> str:
        """Return `2 × A40 on RunPod/CA, spot`; for a machine at home, its host name."""
        if not self.rented:
            return self.host
        gpu = self.gpu or ("unknown GPU" if self.count else "CPU")
        what = f"{self.count} × {gpu}" if self.count > 1 else gpu
        place = "/".join(filter(None, (self.cloud, self.region)))
        way = {True: ", spot", False: ", on demand", None: ""}[self.spot]
        never = "" if self.epochs else ", never trained"
        return f"{what} on {place or self.host}{way}{never}"


@dataclass(frozen=True)
class Costs:
    """All machines of a run, in the order in which they began, and the known dollars by cause."""

    machines: tuple[MachineCost, ...]
    dollars_by_cause: Mapping[str, float]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause, in the order of CAUSES."""
        return {cause: sum(m.seconds[cause] for m in self.machines) for cause in CAUSES}

    @property
    def hours(self) -> float:
        return sum(machine.hours for machine in self.machines)

    @property
    def dollars(self) -> float | None:
        """The known part of the price; None if no machine's price is known."""
        known = [m.dollars for m in self.machines if m.dollars is not None]
        return sum(known) if known else None

    @property
    def unpriced_hours(self) -> float:
        """Hours whose price is not known. They are missing from `dollars`."""
        return sum(machine.unpriced_hours for machine in self.machines)

    @property
    def goodput(self) -> float | None:
        """The useful share of the time, 0 to 1; None if no time has passed."""
        seconds = self.seconds
        total = sum(seconds.values())
        return sum(seconds[cause] for cause in USEFUL) / total if total else None

    def machine_of(self, epoch: int) -> MachineCost | None:
        """Return the machine that owned the run under `epoch`, or None."""
        return next((m for m in self.machines if epoch in m.epochs), None)

    def describe(self) -> str:
        """Return `3 h 10 min, $1.23 (87 % useful; boot 4 %, recompute 9 %)`."""
        words = [duration(3600 * self.hours)]
        if self.dollars is not None:
            words.append(f"${self.dollars:.2f}")
            if self.unpriced_hours:
                words.append(f"{duration(3600 * self.unpriced_hours)} of it without a price")
        return f"{', '.join(words)} ({self.shares()})" if self.goodput is not None else words[0]

    def shares(self) -> str:
        """Return `87 % useful; boot 4 %, recompute 9 %`, with badput of at least half a percent."""
        total = sum(self.seconds.values()) or 1.0
        lost = {c: 100 * s / total for c, s in self.seconds.items() if c not in USEFUL}
        shown = ", ".join(f"{cause} {share:.0f} %" for cause, share in lost.items() if share >= 0.5)
        useful = f"{100 * (self.goodput or 0.0):.0f} % useful"
        return f"{useful}; {shown}" if shown else useful

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "hours": self.hours,
            "dollars": self.dollars,
            "unpriced_hours": self.unpriced_hours,
            "goodput": self.goodput,
            "seconds": self.seconds,
            "dollars_by_cause": dict(self.dollars_by_cause),
            "machines": [dataclasses.asdict(m) | {"hours": m.hours} for m in self.machines],
        }
