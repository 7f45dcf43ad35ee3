"""The report's section on cost: what time and money were spent on, by cause and by machine."""

from __future__ import annotations

from pipeline.console.formats import duration, moment
from pipeline.cost.costs import USEFUL, Costs, MachineCost
from pipeline.report.html import bars, section, table, text

MEANS = {
    "steps": "training steps that were kept",
    "stages": "preparing, evaluating, publishing",
    "boot": "boot, until the first step",
    "restore": "reading a checkpoint back",
    "recompute": "repeated steps",
    "stall": "waiting for saves",
    "idle": "a rented machine did nothing",
}


def cost_section(costs: Costs) -> str:
    """Return the section on time and, if prices are known, dollars; empty if no time has passed."""
    total = 3600 * costs.hours
    if not total:
        return ""
    priced = costs.dollars is not None
    causes = []
    for cause, seconds in costs.seconds.items():
        numbers = [duration(seconds), f"{100 * seconds / total:.1f} %"]
        if priced:
            numbers.append(_dollars(costs.dollars_by_cause[cause]))
        if seconds > 0:
            causes.append((MEANS[cause], seconds, numbers))
    header = ["from", "machine", "first step after", "useful", "time"]
    header += ["dollars per hour", "dollars"] if priced else []
    machines = [_machine(machine, priced) for machine in costs.machines]
    parts = [
        f'<p class="faint">{text(costs.describe())}</p>',
        bars(causes),
        table(header, machines, numbers_from=2),
    ]
    return section("Cost" if priced else "Time", "\n".join(parts))


def _machine(machine: MachineCost, priced: bool) -> list[str]:
    total = sum(machine.seconds.values())
    useful = sum(machine.seconds[cause] for cause in USEFUL) / total if total else 0.0
    wait = machine.to_first_step
    row = [
        moment(machine.begin),
        machine.describe(),
        "–" if wait is None else f"{duration(wait)}{machine.phases_in_words()}",
        f"{100 * useful:.1f} %",
        duration(total),
    ]
    return [*row, _dollars(machine.price), _dollars(machine.dollars)] if priced else row


def _dollars(amount: float | None) -> str:
    return "–" if amount is None else f"${amount:.2f}"
