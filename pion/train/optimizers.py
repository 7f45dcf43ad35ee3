"""The optimizers that a job can name: a row each.

An optimizer is one file with a class of the kind `Rule` (pion/train/optimizer/rule.py), and its row
here. `pion help optimizers` shows an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple


class Row(NamedTuple):
    """An optimizer.

    Attributes:
        rule: the module and the class. They import torch, so a job does not import them.
        title: what a model card calls the optimizer.
        description: what it does, for people who write jobs.
    """

    rule: str
    title: str
    description: str


OPTIMIZERS = {
    "adamw": Row("pion.train.optimizer.adamw:AdamW", "AdamW", "AdamW for everything"),
    "adamw8bit": Row(
        "pion.train.optimizer.adamw8bit:AdamW8bit",
        "AdamW with moments of 8 bits",
        "AdamW whose moments have 8 bits, which takes a quarter of their memory",
    ),
    "muon": Row(
        "pion.train.optimizer.muon:Muon",
        "Muon",
        "Muon for the blocks' matrices, AdamW for the rest",
    ),
}

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
