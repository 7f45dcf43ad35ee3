"""The passes that the draft block of a model saves, as a part of an evaluation."""

from __future__ import annotations

from collections.abc import Callable

from pion.config.draft import TEMPERATURES
from pion.evaluation.results import record_of
from pipeline.stages.measures import Measures, Result


def drafts_of(measures: Measures, stage: str, part: Callable[..., Result]) -> Result:
    """Return the result `drafts` of the model of `stage`; nothing without a block or text."""
    if (
        measures.job.model_config_resolved().draft is None
        or "pretrain" not in measures.trained.data
    ):
        return {}

    def count() -> Result:
        """Count the passes after held-out beginnings."""
        from pion.evaluation.drafting import TEXTS, drafted

        length, rows = measures.job.data.seq_len, measures.rows_of("held_out", "pretrain")
        texts = range(min(measures.job.evaluate.final_rows, rows.total_rows, TEXTS))
        prompts = [rows.row(i).tokens[: max(1, length // 4)].tolist() for i in texts]
        model, size = measures.row_scorer(stage, length).model, measures.tokenizer.vocab_size
        found = {
            name: drafted(model, prompts, temperature, size, measures.on_batch)
            for name, temperature in TEMPERATURES.items()
        }
        return {name: record_of(of) for name, of in found.items() if of is not None}

    return {"drafts": part(f"{stage}.drafts", f"drafts of the {stage} model", count)}
