"""Show what the data of a job give, as it was rehearsed, and what will probably disappoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pion.errors import BadInput
from pipeline.base.find import find_base
from pipeline.base.keep import is_pinned
from pipeline.console.formats import amount, passes_in_words, size
from pipeline.console.formats import counted as counted_words
from pipeline.data.sources import SAMPLED
from pipeline.job import Job
from pipeline.job.train_sections import FEWEST_STEPS
from pipeline.rehearsal.head import RECORD_BYTES, TEXT_BYTES
from pipeline.rehearsal.phases import phases_read, warnings_of
from pipeline.rehearsal.rehearse import RECORDS, StageData, rehearse
from pipeline.rent.check import CheckRow, unchecked

if TYPE_CHECKING:
    from torch import Tensor

# Outside of these pairs per step, recipes that worked are rare.
FEWEST_PAIRS, MOST_PAIRS = 32, 512
# More passes over the same data rarely help; and over conversations, make a model repeat them.
MOST_PASSES = {"pretrain": 4, "sft": 5, "prefer": 3, "reinforce": 100}
LEARNED = "what the model learns is between ⟦ and ⟧"
# The names of the embedding in files of transformers and of Pion.
EMBEDDINGS = ("model.embed_tokens.weight", "embed.weight")
# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096
_EXACT = "`pion run JOB --until prepare` counts exactly, and trains nothing"


def check_rows(job: Job) -> list[CheckRow]:
    """Return what the data of each stage give, and the phases and vocabulary that depend on it."""
    rehearsed = rehearse(job)
    rows, sources = list[CheckRow](), [*rehearsed.rows_of("pretrain")]
    for stage in job.train_stages:
        if (error := rehearsed.failed.get(stage)) is not None:
            if not isinstance(error, BadInput):  # the Hub can't be reached
                rows.append(unchecked(RECORDS[stage], str(error)))
            else:
                rows.append(CheckRow(RECORDS[stage], False, str(error)))
        elif (data := rehearsed.stages.get(stage)) is not None and not rehearsed.prepared:
            rows += _of_stage(job, data)
        if stage == "pretrain":
            phases = phases_read(job, sources)
            rows += [CheckRow(f"phase {n}", True, str(one)) for n, one in enumerate(phases, 1)]
            rows += [CheckRow("phases", None, w) for w in warnings_of(job, phases, sources)]
    return rows + ([] if rehearsed.prepared else _vocabulary(job, rehearsed.text_bytes))


def _of_stage(job: Job, data: StageData) -> Iterator[CheckRow]:
    name = RECORDS[data.stage]
    yield CheckRow(
        name, True, {"prefer": _pairs, "reinforce": _prompts}.get(data.stage, _rows)(job, data)
    )
    yield from (CheckRow(name, None, words) for words in data.warnings)
    warnings = {
        "batch": _batch(job, data),
        "steps": _steps(job, data),
        "passes": _passes(job, data),
    }
    yield from (CheckRow(short, None, words) for short, words in warnings.items() if words)
    if data.first:
        says = "what the model is asked" if data.stage == "reinforce" else LEARNED
        yield CheckRow("the first", True, "\n".join([f"{says}:", *data.first]))
    yield from _untrained(job, data.stage, data.specials)


def _rows(job: Job, data: StageData) -> str:
    """Return rows, passes, steps and tokens of text and conversations, and what is lost of them."""
    section, stage = job.section(data.stage), data.stage
    about = "" if data.exact or data.of_hub else "about "
    items = f"{about}{data.items:,} {data.what} in "
    if about and stage == "pretrain":
        items = ""  # of long documents, only the beginnings were read
    words = (
        f"{items}{about}{data.all_rows:,} rows of {job.seq_len(stage):,} tokens; "
        f"{passes_in_words(data.passes(job))} in {section.total_steps:,} steps of "
        f"{section.global_batch} rows: {_tokens(job, stage)}"
    )
    key, several = "data" if stage == "pretrain" else stage, len(data.rows) > 1
    each = [f"{key}.sources.{n}: {rows:,} rows" for n, rows in enumerate(data.rows) if several]
    return "; ".join([_of_head(data) + words, *each, *data.notes])


def _pairs(job: Job, data: StageData) -> str:
    """Return lines on each source of `prefer`, and on the steps of the stage."""
    lines = []
    for key, summary in data.summaries.items():
        first, *more = summary.in_words()
        lines += [f"{key}: {first}" if len(data.summaries) > 1 else first, *more]
    steps = counted_words(job.section("prefer").total_steps, "step")
    lines += [
        *data.notes,
        f"{passes_in_words(data.passes(job))} in {steps} of about {_per_step(job, data):,.0f} "
        f"{data.what}: {_tokens(job, 'prefer')}",
    ]
    if job.needs_reference("prefer"):
        lines.append(
            "before the first step, the reference is computed once: it takes a third of the time "
            "of a pass, and another beta or loss does not need it again"
        )
    return _of_head(data) + "\n".join(lines)


def _prompts(job: Job, data: StageData) -> str:
    """Return the prompts, steps and answers of `reinforce`."""
    section = job.reinforce
    assert section is not None
    sampled = section.total_steps * section.global_batch * section.answers * section.max_tokens
    words = (
        f"{data.items:,} prompts; {passes_in_words(data.passes(job))} in "
        f"{counted_words(section.total_steps, 'step')} of {section.global_batch} prompts, with "
        f"{section.answers} answers to each: at most {amount(sampled)} tokens to sample"
    )
    return "; ".join([_of_head(data) + words, *data.notes])


def _of_head(data: StageData) -> str:
    """Return of which part of the data the numbers are."""
    if data.of_hub:
        return f"of the first {SAMPLED:,} {RECORDS[data.stage]}: "
    if data.exact:
        return ""
    _, read = TEXT_BYTES if data.stage == "pretrain" else RECORD_BYTES
    return f"estimated from {size(read)} of each large source ({_EXACT}): "


def _tokens(job: Job, stage: str) -> str:
    section = job.section(stage)
    return f"{amount(section.total_steps * section.global_batch * job.seq_len(stage))} tokens"


def _per_step(job: Job, data: StageData) -> float:
    """Return how many pairs, or single answers, a step learns from on average."""
    return job.section("prefer").global_batch * data.items / data.all_rows


# ---------------------------------------------------------------- what will probably disappoint


def _batch(job: Job, data: StageData) -> str | None:
    if data.stage == "pretrain" and data.all_rows < job.section("pretrain").global_batch:
        return f"it is not known whether the corpus fills a batch. {_EXACT}"
    if data.stage != "prefer" or data.items < FEWEST_PAIRS:
        return None
    batch = _per_step(job, data)
    if FEWEST_PAIRS <= batch <= MOST_PAIRS:
        return None
    return (
        f"a step has about {batch:,.0f} {data.what}; {FEWEST_PAIRS} to {MOST_PAIRS} are usual. "
        "Change prefer.global_batch"
    )


def _steps(job: Job, data: StageData) -> str | None:
    """Return a warning of passes that are only a few steps, with a batch that makes more."""
    section, rows = job.section(data.stage), data.all_rows
    if data.of_hub or section.steps is not None or section.total_steps >= FEWEST_STEPS:
        return None
    batch = section.batch_for(rows)
    if data.stage == "prefer":  # a step needs FEWEST_PAIRS, too
        batch = max(batch, math.ceil(FEWEST_PAIRS * rows / data.items))
    words = f"{counted_words(section.total_steps, 'step')} change a model little"
    if batch >= section.global_batch:
        more = f"{words}: use more {data.what}, or more passes"
        return more if data.stage == "prefer" else None
    return (
        f"{words}. With {data.stage}.global_batch={batch}, the same {data.what} make "
        f"{math.ceil(section.passes * rows / batch):,} steps"
    )


def _passes(job: Job, data: StageData) -> str | None:
    passes, most, stage = data.passes(job), MOST_PASSES[data.stage], data.stage
    if data.of_hub or passes <= most or (stage == "pretrain" and job.mix_phases):
        return None
    then = "little is left to learn"
    if stage == "sft":
        then = "a model rather repeats them than learns from them"
    lower = f"{stage}.steps" if stage == "pretrain" else f"{stage}.epochs or {stage}.steps"
    return (
        f"{passes:.3g} passes over the same {data.what}: beyond {most}, {then}. Lower {lower}, or "
        f"add {data.what}"
    )


def _vocabulary(job: Job, text_bytes: float | None) -> list[CheckRow]:
    """Warn of a vocabulary that is to be trained on too little text."""
    train = None if job.tokenizer is None else job.tokenizer.train
    if train is None or text_bytes is None:
        return []
    read = min(text_bytes, train.max_mb * 1e6)
    most = max(FEW_ENTRIES, int(read) // BYTES_PER_ENTRY)
    if train.vocab_size <= most:
        return []
    words = (
        f"{train.vocab_size:,} entries are more than one for each kilobyte of text: they are "
        f"trained on {size(read)}. Entries that occur a few times are never learned well, and "
        f"each has a row of the model. Add text, or set tokenizer.train.vocab_size={most}"
    )
    return [CheckRow("vocabulary", None, words)]


def _untrained(job: Job, stage: str, specials: Mapping[int, str]) -> list[CheckRow]:
    """Return a warning if LoRA can't teach the model these special tokens."""
    if job.base is None or stage != job.train_stages[0] or job.lora(stage) is None:
        return []
    if job.base.commit is not None or is_pinned(job, job.base):
        return []  # the weights may be elsewhere, and the run says the same when training starts
    from pion.evaluation.untrained_rows import never_stops

    found = find_base(job.base.source, job.folder)
    embedding = _embedding([found.bring(n) for n in found.files if n.endswith(".safetensors")])
    words = None if embedding is None else never_stops(embedding, specials)
    return [] if words is None else [CheckRow("end of turn", None, words)]


def _embedding(files: list[Path]) -> Tensor | None:
    """Return the embedding of a model, without reading the other tensors."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in set(EMBEDDINGS).intersection(file.keys()):
                return cast("Tensor", file.get_tensor(name))
    return None
