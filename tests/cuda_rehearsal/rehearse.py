"""Rehearse what scenarios.py lists, on pretended cards, and print the reports.

environment.py starts this program: `python -m tests.cuda_rehearsal.rehearse suite`, or `all`.
"""

from __future__ import annotations

import sys

from tests.cuda_rehearsal.pretended_card import insert_card, pretended_card
from tests.cuda_rehearsal.report import print_reports
from tests.cuda_rehearsal.scenarios import MODELS, REHEARSALS, SCENARIOS, WHOLE_MODELS, rehearse


def main() -> None:
    reports = {}
    with pretended_card() as watch:
        for rehearsal in REHEARSALS[sys.argv[1]]:
            insert_card(rehearsal.card)
            config = (MODELS | WHOLE_MODELS)[rehearsal.model]
            reports[str(rehearsal)] = rehearse(watch, config, SCENARIOS[rehearsal.scenario])
    print_reports(reports)


if __name__ == "__main__":
    main()
