"""What training has changed: the model that a run started from and the trained model, measured on
the same rows.

Both are measured on held-out conversations and text of the run, and on a text that has nothing to
do with the run: what the model predicts worse there, it has forgotten. The same documents are
paired, so the standard error of a difference is much smaller than the errors of its two sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from pion.errors import BadInput
from pipeline.stages.measures import SUMS, Kind, Measures, Parts, Result, without_rows

LABELS: Mapping[Kind, str] = {
    "conversations": "held-out conversations",
    "held_out": "held-out text",
    "text": "other text",
}
# The result by which two models are compared, and its unit in nats.
RESPONSES = ("response_loss", 1.0)
TEXT = ("bits_per_byte", math.log(2))


@dataclass(frozen=True)
class Start:
    """What was measured of the model that a run started from, by what it was measured on.

    `text` is the sha256 of the text.
    """

    measured: Mapping[Kind, Result]
    text: str

    @property
    def names(self) -> dict[Kind, str]:
        """The names of the parts that measure the trained model on the same."""
        hashes = {"text": f".{self.text[:16]}"}
        return {kind: f"compared.{kind}{hashes.get(kind, '')}" for kind in self.measured}


def measure_each(
    measures: Measures, model: str, names: Mapping[Kind, str], part: Parts
) -> dict[Kind, Result]:
    """Return the measures of `model`, with the sums of each row; `names` are those of the parts."""
    return {
        kind: part(name, f"{model} model on {LABELS[kind]}", partial(measures.by_row, model, kind))
        for kind, name in names.items()
    }


def as_results(measured: Mapping[Kind, Result]) -> Result:
    """Return one model's measures as results: those on the text are under `text`."""
    results: Result = {}
    for kind, result in measured.items():
        results |= {"text": without_rows(result)} if kind == "text" else without_rows(result)
    return results


def compare(start: Start, after: Mapping[Kind, Result]) -> Result:
    """Return the results `base` (before training), `change` (after minus before) and
    `compared_text` (which text that was).

    `change` has the names of the models' results, each with the standard error `…_sem` of paired
    documents.
    """
    change: Result = {}
    for kind, before in start.measured.items():
        by = RESPONSES if kind == "conversations" else TEXT
        found = _change(*by, before, after[kind])
        change |= {"text": found} if kind == "text" else found
    return {
        "base": as_results(start.measured),
        "change": change,
        "compared_text": {"sha256": start.text},
    }


def _change(name: str, nats: float, before: Result, after: Result) -> Result:
    """Return the change of a measure in units of `nats`, and its standard error."""
    import numpy as np

    from pion.evaluation.held_out import ratio

    # What an older version measured before training has only the sums of rows.
    by = next(name for name in SUMS if name in before and name in after)
    if before[by]["sizes"] != after[by]["sizes"]:
        raise BadInput(
            f"evaluate: the models before and after training were measured on different rows, so "
            f"{name} can't be compared. The trained model is safe. Delete the parts in the run's "
            "folder stages/evaluate, and run the same command again: both are measured again."
        )
    # A sum that is not finite is kept as null.
    sums = [np.array(side[by]["nats"], dtype=np.float64) for side in (before, after)]
    value, error = ratio((sums[1] - sums[0]) / nats, np.array(before[by]["sizes"]))
    return {name: value, f"{name}_sem": error}
