"""Run the rows of `pion.bench` and the checks of tests/gpu on a pretended card, and print what
became of each.

environment.py starts this program: `python -m tests.cuda_rehearsal.bench`. The card has no values,
so a check may say that they are wrong. It must not raise.

Rows that train many steps are left out: scenarios.py has training, and a step on this card is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from pion.bench import speed
from pion.bench.catalog import every_task
from pion.bench.models import Bench, check_model
from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import print_reports
from tests.cuda_rehearsal.scenarios import rehearse
from tests.cuda_rehearsal.watch import Watch
from tests.gpu.checks import CHECKS

SLOW = ("losses/", "resume/")
Generator = torch.Generator
# A card's generator, without a driver.
ON_HOST = {"__new__": lambda cls, device=None: Generator.__new__(cls)}


def run(row: Callable[[], Any], watch: Watch, config: ModelConfig) -> tuple[int, None]:
    """Run one row; it is the scenario's only unit, and nothing of it remains."""
    row()
    return 1, None


def move(model: Decoder, device: Any) -> Decoder:
    """Move the model, but only once: a fake parameter can't be replaced again."""
    there = model.embed.weight.device == torch.device(device)
    return model if there else nn.Module.to(model, device)


def main() -> None:
    reports = {}
    anything = check_model("pion", tiny=True)
    with (
        pretended_card() as watch,
        mock.patch.object(torch.cuda, "reset_peak_memory_stats"),
        mock.patch.object(Decoder, "to", move),
        mock.patch.object(speed, "WARMUP_STEPS", 1),
        mock.patch.object(speed, "MOST_STEPS", 1),
        mock.patch.object(torch, "Generator", type("OnHost", (Generator,), ON_HOST)),
    ):
        bench = Bench(torch.device("cuda", 0), tiny=True)
        rows = {task.name: task.run for task in every_task(bench)}
        rows |= {name: partial(check, bench) for name, check in CHECKS.items()}
        for name, row in rows.items():
            if not name.startswith(SLOW):
                reports[name] = rehearse(watch, anything, partial(run, row))
    print_reports(reports)


if __name__ == "__main__":
    main()
