"""The sums of documents, packed: by them two runs are compared that were measured on the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pion.evaluation.item_scores import ItemScores, pack
from pipeline.data.compared_text import find_text
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.stages.measures import SUMS, Kind, Measures, Result, without_sums
from pipeline.state.run_state import BY_ITEM

# What the sums are of.
NAMES: Mapping[Kind, str] = {
    "conversations": "response_loss",
    "held_out": "bits_per_byte",
    "text": "text.bits_per_byte",
}
# Of more documents, only the sums over all are kept.
MOST_DOCUMENTS = 100_000


def with_items(measures: Measures, stage: str, kind: Kind) -> Result:
    """Measure the model of `stage`; see `Measures.with_sums`. The sums of documents are packed."""
    result = measures.with_sums(stage, kind)
    return without_sums(result) | {BY_ITEM: by_document(measures.job, result, kind)}


def by_document(job: Job, result: Result, kind: Kind) -> Result:
    """Return what `Measures.with_sums` has measured of each document, packed, by its name; {} for
    very many documents."""
    sums = result[SUMS]
    if len(sums["sizes"]) > MOST_DOCUMENTS:
        return {}
    unit = 1.0 if kind == "conversations" else math.log(2)
    # A sum that is not finite is kept as null.
    scores = np.array(sums["nats"], dtype=np.float64) / unit
    items = ItemScores(scores, sizes=np.array(sums["sizes"], dtype=np.int64))
    return {NAMES[kind]: {"key": _same_documents(job, kind), **pack(items)}}


def _same_documents(job: Job, kind: Kind) -> Result:
    """Return what two runs have in common if they are measured on the same documents."""
    rows = {"rows": job.evaluate.final_rows}
    if kind == "text":
        return rows | {"text": find_text(job).sha256}
    part = "sft" if kind == "conversations" else "pretrain"
    order = {"seed": job.seed, "window": job.data.window}
    return rows | order | {"data": digest_job(job).data[part]}
