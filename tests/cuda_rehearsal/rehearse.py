"""Rehearse every scenario for every model on a pretended card, and print the reports.

environment.py starts this program: `python -m tests.cuda_rehearsal.rehearse`.
"""

from __future__ import annotations

from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import print_reports
from tests.cuda_rehearsal.scenarios import MODELS, SCENARIOS, rehearse


def main() -> None:
    with pretended_card() as watch:
        reports = {
            f"{model}: {name}": rehearse(watch, config, scenario)
            for model, config in MODELS.items()
            for name, scenario in SCENARIOS.items()
        }
    print_reports(reports)


if __name__ == "__main__":
    main()
