"""What `pion plan --dollars N` prints: at most twelve lines, or JSON."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.console.formats import money, short_amount, size
from pipeline.rent.plan.dollars import (
    SPARE,
    TOKENS_PER_PARAMETER,
    Asked,
    Option,
    Purchase,
    best_of_each,
    pretrain_of,
)

# How many cards are shown. `--json` has all.
SHOWN = 5
# A model that answers one person reads all its weights for each token. The memory of a laptop reads
# so many bytes per second.
LAPTOP = 50e9
# The rental of which a copy is made, and rentals of one card, on demand.
SKY, MY_SKY = "sky/runpod-spot.yaml", "sky/mine.yaml"
ONE_CARD = {"A40": "sky/runpod-a40.yaml", "RTXA4000": "sky/runpod-a4000.yaml"}


@dataclass(frozen=True)
class Answer:
    """What the money buys."""

    asked: Asked
    options: Sequence[Option]

    @property
    def first(self) -> Option:
        """The option that is recommended."""
        return self.options[0]


def as_lines(answer: Answer) -> list[str]:
    """Return what a person acts on, in at most twelve lines."""
    chosen = answer.first.chosen
    speed = pretrain_of(chosen.estimate)
    shown = best_of_each(answer.options)[:SHOWN]
    change = _rental(answer)[1]
    left = len(answer.options) - len(shown)
    more = f" ({left} more with --json)" if left > 0 else ""
    return [
        f"What to train for {answer.asked.money}. The best cards{more}:",
        *_table(shown),
        f"Train {chosen.size.name}: the largest model that gets {TOKENS_PER_PARAMETER} tokens for "
        "each parameter.",
        f"  settings  {_settings_in_words(chosen)}",
        f"  speed     {speed.tokens_per_second or 0:,.0f} tokens/s, {speed.speed_from}",
        f"  to use    {_use_in_words(chosen)}",
        f"A tenth of the money is kept for preparing data, evaluation and publishing. "
        f"{'Next' if change is None else f'Next, {change}, then'}:",
        f"  {command(answer)}",
    ]


def as_json(answer: Answer, notes: Sequence[str]) -> dict[str, Any]:
    """Return all of the answer as plain JSON."""
    return {
        "dollars": answer.asked.money.dollars,
        "hours": answer.asked.money.hours,
        "options": [
            {
                **dataclasses.asdict(option.offer),
                "price": option.offer.price,
                "chosen": _purchase_json(option.chosen),
            }
            for option in answer.options
        ],
        "inference": _use(answer.first.chosen),
        "command": command(answer),
        "notes": [*notes, f"{SPARE:.0%} of the money is kept for other work than training"],
    }


# ---------------------------------------------------------------- the command to run next


def command(answer: Answer) -> str:
    """Return the command that rents the machine and trains what is recommended."""
    chosen = answer.first.chosen
    job = chosen.size.job
    fields = {
        f"pretrain.{name}": f"{value:g}"
        for name, value in chosen.settings.items()
        if getattr(job.section("pretrain"), name) != value
    }
    fields["pretrain.steps"] = str(chosen.settings["steps"])
    own = chosen.size.reference.model.preset
    name = chosen.size.name if job.name == own else job.name
    fields["name"] = f"{name}-{answer.asked.money.dollars:g}-dollars"
    fields["budget.dollars"] = f"{answer.asked.money.dollars:g}"
    if "://" not in job.store:
        fields["store"] = "s3://my-bucket/runs"
    kept = [item for item in chosen.size.overrides if item.partition("=")[0] not in fields]
    new = [f"{name}={value}" for name, value in fields.items()]
    return shlex.join(["pion", "launch", chosen.size.path, "--on", _rental(answer)[0], *kept, *new])


def _rental(answer: Answer) -> tuple[str, str | None]:
    """Return the SkyPilot file that rents the recommended card, and how to make this file; None: it
    is there. `pion launch` rents the cheapest card of a file, and that is often another card."""
    offer, on = answer.first.offer, answer.asked.on
    cheapest = min(option.offer.price or 0.0 for option in answer.options)
    if on is not None and offer.price == cheapest:
        return on, None
    if on is None and offer.count == 1 and not offer.use_spot and offer.gpu in ONE_CARD:
        return ONE_CARD[offer.gpu], None
    place = "" if offer.cloud is None else f"infra: {offer.cloud.lower()}, "
    spot = str(offer.use_spot).lower()
    return MY_SKY, (
        f"copy {on or SKY} to {MY_SKY} with {place}accelerators: {offer.gpu}:{offer.count}, "
        f"use_spot: {spot} in place of its machines"
    )


# ---------------------------------------------------------------- in words


def _table(shown: Sequence[Option]) -> list[str]:
    """Return a line with names, and one for each card."""
    rows = [["card", "$/h", "model", "tokens", "a parameter", "hours", "$"]]
    for option in shown:
        offer, chosen = option.offer, option.chosen
        cells = [
            _cards(option),
            f"{offer.price or 0.0:.2f}",
            chosen.size.name,
            short_amount(chosen.tokens),
            f"{chosen.tokens_per_parameter:.0f}",
            f"{chosen.estimate.hours or 0.0:,.1f}",
            money(chosen.estimate.dollars or 0.0, sign=""),
        ]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in lines]


def _cards(option: Option) -> str:
    """Return the cards of a machine: `4 × A40 spot, sharded`."""
    offer = option.offer
    count = f"{offer.count} × " if offer.count > 1 else ""
    sharded = ", sharded" if option.chosen.estimate.sharded else ""
    return f"{count}{offer.gpu} {'spot' if offer.use_spot else 'on demand'}{sharded}"


def _settings_in_words(chosen: Purchase) -> str:
    settings, row = dict(chosen.settings), chosen.size.job.data.seq_len
    steps, batch = settings.pop("steps"), settings.pop("global_batch")
    rates = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    return f"{steps:,} steps of {batch:,} × {row:,} tokens, {rates}"


def _use(chosen: Purchase) -> dict[str, float]:
    """Return the bytes of the exported model in bf16, and the most tokens per second that a laptop
    writes."""
    cost = chosen.size.cost
    return {
        "bytes": 2 * cost.all_params,
        "laptop_tokens_per_second": LAPTOP / (2 * cost.active_params),
    }


def _use_in_words(chosen: Purchase) -> str:
    use = _use(chosen)
    speed = float(f"{use['laptop_tokens_per_second']:.2g}")
    return (
        f"{size(use['bytes'])} in bf16; a laptop that reads 50 GB/s writes at most {speed:,.0f} "
        "tokens/s"
    )


# ---------------------------------------------------------------- as JSON


def _purchase_json(purchase: Purchase) -> dict[str, Any]:
    estimate, stage = purchase.estimate, pretrain_of(purchase.estimate)
    return {
        "model": purchase.size.name,
        "job": purchase.size.path,
        "parameters": purchase.size.cost.all_params,
        "macs_per_token": purchase.size.cost.macs_per_token,
        "tokens": purchase.tokens,
        "tokens_per_parameter": purchase.tokens_per_parameter,
        "flops": purchase.flops,
        "settings": dict(purchase.settings),
        "hours": estimate.hours,
        "dollars": estimate.dollars,
        "tokens_per_second": stage.tokens_per_second,
        "speed_from": stage.speed_from,
        "measured": stage.measured,
        "sharded": estimate.sharded,
    }
