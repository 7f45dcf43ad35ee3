"""How much worse a model predicts text after `prefer`: what it has paid for the preferences."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pion.evaluation.item_scores import difference, unpack
from pipeline.data.compared_text import find_text
from pipeline.stages.by_document import NAMES, by_document, with_items
from pipeline.stages.preferences import STAGE
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    from pipeline.stages.measures import Kind, Measures, Part, Result


def text_change(
    measures: Measures, base: Mapping[Kind, Result], items: Mapping[str, Result], part: Part
) -> Result:
    """Return the `text_change` in bits per byte from the model that `prefer` starts from, and the
    `response_change` in nats per token, if both were measured on conversations.

    The text is the run's held-out text or, without one, that of `evaluate.text`. `base` is
    what was measured of the model that the run starts from. `items` has the sums of documents that
    are known; others are measured.
    """
    began = measures.trained.prefer_start
    assert began is not None
    kind: Kind = "text" if measures.trained.pretrain_data is None else "held_out"
    if began.load is None:
        return {}
    known = dict(items)
    if began.name == "base":
        for of, measured in base.items():
            found = by_document(measures.job, measured, of)
            known |= {f"base.{name}": kept for name, kept in found.items()}
    for model in (began.name, STAGE):
        if f"{model}.{NAMES[kind]}" not in known:
            hashed = f".{find_text(measures.job).sha256[:16]}" if kind == "text" else ""
            measured = part(
                f"{model}.{kind}{hashed}",
                f"{model} model on {'other' if kind == 'text' else 'held-out'} text",
                partial(with_items, measures, model, kind),
            )
            known |= {f"{model}.{name}": kept for name, kept in measured[BY_ITEM].items()}
    change = _change(known, began.name, NAMES[kind], "text_change")
    return change | _change(known, began.name, NAMES["conversations"], "response_change")


def _change(known: Mapping[str, Result], before: str, of: str, name: str) -> Result:
    sides = [known.get(f"{model}.{of}") for model in (before, STAGE)]
    if sides[0] is None or sides[1] is None:
        return {}
    value, error = difference(unpack(sides[0]), unpack(sides[1]))
    return {name: value, f"{name}_sem": error}
