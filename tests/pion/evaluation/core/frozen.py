"""The cases for which nanochat's choices are frozen; `python -m benchmarks.core_oracle` makes them.

In nanochat_choices.json, -1 is a text that the model would not write as it is in the item, and null
an item that nanochat's code refuses with an AssertionError.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FROZEN = Path(__file__).with_name("nanochat_choices.json")


@dataclass(frozen=True)
class Case:
    """A tokenizer of tests/support/tokenizer_kinds.py, a context in tokens, and a model's seed."""

    kind: str
    context: int
    seed: int

    @property
    def name(self):
        return f"{self.kind}, context {self.context}, seed {self.seed}"


# Byte BPE, NFC, and a token before each document. With 72 tokens, most examples are cropped.
CASES = [
    Case(kind, context, seed)
    for kind in ("gpt2", "qwen", "llama3")
    for context, seed in ((512, 0), (512, 1), (512, 2), (72, 3))
]


def nanochat_choices(case):
    """Return nanochat's choice for each item of each task."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    return frozen[case.name]
