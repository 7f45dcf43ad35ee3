"""Lower compiled training steps for a pretended card, and hand back the outcomes.

test_kernels.py starts this program with one of these arguments:

  * `families`: one block of each family;
  * `soak FAMILY CARD DTYPE`: all kinds of steps of a family on a card;
  * `layers PRESET …`: all layers of full presets, traced and not lowered.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from pion.config.model_config import ModelConfig
from tests.cuda_rehearsal.compiled import (
    SEQ_LEN,
    Case,
    Dtype,
    Outcome,
    compile_case,
    run,
    soak,
    suite,
)
from tests.cuda_rehearsal.kernels import Assembler
from tests.cuda_rehearsal.pretended_card import CARDS, pretended_card
from tests.cuda_rehearsal.report import hand_back
from tests.cuda_rehearsal.watch import Watch


def lower_families(watch: Watch) -> dict[str, Outcome]:
    """Return the outcomes of all families."""
    assembler = Assembler(CARDS["A40"])
    outcomes: dict[str, Outcome] = {}
    for name, case in suite().items():
        outcomes[name], graphs = compile_case(watch, case)
        for graph in graphs:
            outcomes[name].add(assembler.assemble(graph))
    return outcomes


def lower_soak(watch: Watch, family: str, card: str, dtype: Dtype) -> dict[str, Outcome]:
    """Return the outcomes of a family on a card."""
    assembler = Assembler(CARDS[card])
    return {kind: run(watch, case, assembler) for kind, case in soak(family, card, dtype).items()}


def trace_layers(watch: Watch, *presets: str) -> dict[str, Outcome]:
    """Return the outcomes of full presets. Their layers are compiled, and not lowered."""
    cases = {}
    for name in presets:
        seq_len = max(SEQ_LEN, ModelConfig.preset(name).seq_len)
        config = ModelConfig.preset(name, vocab_size=4096, seq_len=seq_len)
        # Windows have masks of another kind if they cover whole rows.
        cases[name] = Case(config, row_tokens=min(seq_len, LONG_ROW))
    return {name: compile_case(watch, case, trace_only=True)[0] for name, case in cases.items()}


# The tokens of a row that no preset's window covers.
LONG_ROW = 4096

TASKS: dict[str, Callable[..., dict[str, Outcome]]] = {
    "families": lower_families,
    "soak": lower_soak,
    "layers": trace_layers,
}


def main() -> None:
    task, *rest = sys.argv[1:]
    with pretended_card() as watch:
        outcomes = TASKS[task](watch, *rest)
    hand_back({name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()})


if __name__ == "__main__":
    main()
