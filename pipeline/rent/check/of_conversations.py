"""Check the conversations of a job: their rows, the passes over them, and what is lost of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.find import find_base
from pipeline.job import Job
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.of_base import is_pinned
from pipeline.rent.check.row import CheckRow
from pipeline.rent.plan.conversations import (
    First,
    count_conversations,
    in_words,
    too_few_steps,
    too_many_passes,
)

if TYPE_CHECKING:
    from torch import Tensor

# The names of the embedding in files of transformers and of Pion.
EMBEDDINGS = ("model.embed_tokens.weight", "embed.weight")


def check_conversations(job: Job) -> list[CheckRow]:
    """Show what the conversations give. Raises BadInput for conversations that can't be used."""
    if job.sft is None or is_prepared(job):
        return []
    counted = count_conversations(job)
    if counted is None:
        return []
    job.section("sft").know_rows(counted.rows)
    rows = [CheckRow("conversations", True, in_words(job, counted))]
    warnings = {"steps": too_few_steps(job, counted), "passes": too_many_passes(job, counted)}
    rows += [CheckRow(name, None, words) for name, words in warnings.items() if words]
    words = f"what the model learns is between ⟦ and ⟧:\n{counted.first.text}"
    return [*rows, CheckRow("the first", True, words), *_untrained(job, counted.first)]


def _untrained(job: Job, first: First) -> list[CheckRow]:
    """Return a warning if LoRA can't teach the model the special tokens of conversations."""
    if job.base is None or job.lora(job.train_stages[0]) is None:
        return []
    if job.base.commit is not None or is_pinned(job, job.base):
        return []  # the weights may be elsewhere, and the run says the same when training starts
    from pion.evaluation.untrained_rows import never_stops

    found = find_base(job.base.source, job.folder)
    files = [found.bring(name) for name in found.files if name.endswith(".safetensors")]
    embedding = _embedding(files)
    words = None if embedding is None else never_stops(embedding, first.specials)
    return [] if words is None else [CheckRow("end of turn", None, words)]


def _embedding(files: list[Path]) -> Tensor | None:
    """Return the embedding of a model, without reading the other tensors."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in set(EMBEDDINGS).intersection(file.keys()):
                tensor: Tensor = file.get_tensor(name)
                return tensor
    return None
