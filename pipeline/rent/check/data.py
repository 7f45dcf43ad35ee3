"""Show what the data of a job give, as it was rehearsed, and what cleaning leaves out of them. Warn
of what will disappoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.base.find import find_base
from pipeline.base.keep import is_pinned
from pipeline.console.formats import amount, counted, passes_in_words, size
from pipeline.data.cleaning.sets import read_sets
from pipeline.data.sources import SAMPLED
from pipeline.job import Job
from pipeline.job.data_section import OF_EVALUATE
from pipeline.job.sft_and_lora_sections import Conversations
from pipeline.job.stages import WORDS, data_key
from pipeline.job.train_sections import FEWEST_STEPS
from pipeline.rehearsal.head import RECORD_BYTES, TEXT_BYTES
from pipeline.rehearsal.phases import phases_read, warnings_of
from pipeline.rehearsal.rehearse import StageData, rehearse
from pipeline.rent.check import CheckRow, failure
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.rewards import prompts_in_words

if TYPE_CHECKING:
    from torch import Tensor

# Outside of these pairs per step, recipes that worked are rare.
FEWEST_PAIRS, MOST_PAIRS = 32, 512
# More passes over the same data rarely help, and what they do.
NO_HELP = "little is left to learn"
MOST_PASSES = {
    "pretrain": (4, NO_HELP),
    "sft": (5, "a model rather repeats them than learns from them"),
    "prefer": (3, NO_HELP),
    "reinforce": (100, NO_HELP),
}
LEARNED = "what the model learns is between ⟦ and ⟧"
# The names of the embedding in files of transformers and of Pion.
EMBEDDINGS = ("model.embed_tokens.weight", "embed.weight")
# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096
_EXACT = "`pion run JOB --until prepare` counts exactly, and trains nothing"


def check_rows(job: Job) -> Iterator[CheckRow]:
    """Yield what the data of each stage give, and the phases and vocabulary that depend on it."""
    rehearsed = rehearse(job)
    sources = rehearsed.rows_of("pretrain")
    for stage in job.train_stages:
        if stage in rehearsed.failed:
            yield failure(WORDS[stage].records, rehearsed.failed[stage])
        elif stage in rehearsed.stages and not rehearsed.prepared:
            yield from _of_stage(job, rehearsed.stages[stage])
        if stage == "pretrain":
            phases = phases_read(job, sources)
            yield from (CheckRow(f"phase {n}", True, str(p)) for n, p in enumerate(phases, 1))
            yield from (CheckRow("phases", None, w) for w in warnings_of(job, phases, sources))
    if not rehearsed.prepared:
        yield from _vocabulary(job, rehearsed.text_bytes)


def _of_stage(job: Job, data: StageData) -> Iterator[CheckRow]:
    name = WORDS[data.stage].records
    yield CheckRow(name, True, _of_head(data) + SUMMED_UP[data.stage](job, data))
    yield from (CheckRow(name, None, warning) for warning in data.warnings)
    for short, warnings in WARNINGS.items():
        yield from (CheckRow(short, None, warning) for warning in warnings(job, data))
    if data.first:
        says = "what the model is asked" if job.section(data.stage).sampled else LEARNED
        yield CheckRow("the first", True, "\n".join([f"{says}:", *data.first]))
    yield from _untrained(job, data.stage, data.specials)


def _of_head(data: StageData) -> str:
    """Return of which part of the data the numbers are."""
    if data.of_hub:
        return f"of the first {SAMPLED:,} {WORDS[data.stage].records}: "
    if data.exact:
        return ""
    _, read = TEXT_BYTES if data.stage == "pretrain" else RECORD_BYTES
    return f"estimated from {size(read)} of each large source ({_EXACT}): "


def _rows(job: Job, data: StageData) -> str:
    """Return rows, passes, steps and tokens of text and conversations, and what is lost of them."""
    about = "" if data.exact or data.of_hub else "about "
    # Of long documents, only the beginnings were read.
    items = "" if about and data.stage == "pretrain" else f"{about}{data.items:,} {data.what} in "
    sentence = (
        f"{items}{about}{data.all_rows:,} rows of {job.seq_len(data.stage):,} tokens; "
        f"{passes_in_words(data.passes)} in {data.steps:,} steps of "
        f"{job.section(data.stage).global_batch} rows: {amount(data.tokens)} tokens"
    )
    key, several = data_key(data.stage), len(data.rows) > 1
    each = [f"{key}.sources.{n}: {rows:,} rows" for n, rows in enumerate(data.rows) if several]
    return "; ".join([sentence, *each, *data.notes])


def _pairs(job: Job, data: StageData) -> str:
    """Return lines on each source of `prefer`, and on the steps of the stage."""
    lines = []
    for key, summary in data.summaries.items():
        first, *more = summary.in_words()
        lines += [f"{key}: {first}" if len(data.summaries) > 1 else first, *more]
    lines += [
        *data.notes,
        f"{passes_in_words(data.passes)} in {counted(data.steps, 'step')} of about "
        f"{_per_step(job, data):,.0f} {data.what}: {amount(data.tokens)} tokens",
    ]
    if job.section(data.stage).needs_reference:
        lines.append(
            "before the first step, the reference is computed once: it takes a third of the time "
            "of a pass, and another beta or loss does not need it again"
        )
    return "\n".join(lines)


# What is said of the data of a stage.
SUMMED_UP: dict[str, Callable[[Job, StageData], str]] = {
    "pretrain": _rows,
    "sft": _rows,
    "prefer": _pairs,
    "reinforce": prompts_in_words,
}


# ---------------------------------------------------------------- what will probably disappoint


def _per_step(job: Job, data: StageData) -> float:
    """Return how many pairs, or single answers, a step learns from on average."""
    return job.section(data.stage).global_batch * data.items / data.all_rows


def _batch(job: Job, data: StageData) -> Iterator[str]:
    if data.stage == "pretrain" and data.all_rows < job.section("pretrain").global_batch:
        yield f"it is not known whether the corpus fills a batch. {_EXACT}"
    if not data.summaries or data.items < FEWEST_PAIRS:
        return
    batch = _per_step(job, data)
    if not FEWEST_PAIRS <= batch <= MOST_PAIRS:
        yield (
            f"a step has about {batch:,.0f} {data.what}; {FEWEST_PAIRS} to {MOST_PAIRS} are usual. "
            f"Change {data.stage}.global_batch"
        )


def _steps(job: Job, data: StageData) -> Iterator[str]:
    """Yield a warning of passes that are only a few steps, with a batch that makes more."""
    section, rows = job.section(data.stage), data.all_rows
    if data.of_hub or section.steps is not None or data.steps >= FEWEST_STEPS:
        return
    batch, few = section.batch_for(rows), f"{counted(data.steps, 'step')} change a model little"
    if data.summaries:  # of preferences: a step needs FEWEST_PAIRS, too
        batch = max(batch, math.ceil(FEWEST_PAIRS * rows / data.items))
    if batch < section.global_batch:
        yield (
            f"{few}. With {data.stage}.global_batch={batch}, the same {data.what} make "
            f"{math.ceil(section.passes * rows / batch):,} steps"
        )
    elif data.summaries:
        yield f"{few}: use more {data.what}, or more passes"


def _passes(job: Job, data: StageData) -> Iterator[str]:
    (most, then), stage = MOST_PASSES[data.stage], data.stage
    if data.of_hub or data.passes <= most or (stage == "pretrain" and job.mix_phases):
        return
    may_pass = isinstance(job.section(stage), Conversations)
    lower = f"{stage}.epochs or {stage}.steps" if may_pass else f"{stage}.steps"
    yield (
        f"{passes_in_words(data.passes)} over the same {data.what}: beyond {most}, {then}. Lower "
        f"{lower}, or add {data.what}"
    )


WARNINGS: dict[str, Callable[[Job, StageData], Iterator[str]]] = {
    "batch": _batch,
    "steps": _steps,
    "passes": _passes,
}


def _vocabulary(job: Job, text_bytes: float | None) -> Iterator[CheckRow]:
    """Warn of a vocabulary that is to be trained on too little text."""
    train = None if job.tokenizer is None else job.tokenizer.train
    if train is None or text_bytes is None:
        return
    read = min(text_bytes, train.max_mb * 1e6)
    most = max(FEW_ENTRIES, int(read) // BYTES_PER_ENTRY)
    if train.vocab_size > most:
        sentence = (
            f"{train.vocab_size:,} entries are more than one for each kilobyte of text: they are "
            f"trained on {size(read)}. Entries that occur a few times are never learned well, and "
            f"each has a row of the model. Add text, or set tokenizer.train.vocab_size={most}"
        )
        yield CheckRow("vocabulary", None, sentence)


def _untrained(job: Job, stage: str, specials: Mapping[int, str]) -> Iterator[CheckRow]:
    """Warn if LoRA can't teach the model these special tokens."""
    if job.base is None or stage != job.train_stages[0] or job.lora(stage) is None:
        return
    if job.base.commit is not None or is_pinned(job, job.base):
        return  # the weights may be elsewhere, and the run says the same when training starts
    from pion.evaluation.untrained_rows import never_stops

    base = find_base(job.base.source, job.folder)
    files = [base.bring(name) for name in base.files if name.endswith(".safetensors")]
    for embedding in _embeddings(files):
        if (warning := never_stops(embedding, specials)) is not None:
            yield CheckRow("end of turn", None, warning)


def _embeddings(files: Sequence[Path]) -> Iterator[Tensor]:
    """Yield the embedding of a model, without reading the other tensors."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in set(EMBEDDINGS).intersection(file.keys()):
                yield cast("Tensor", file.get_tensor(name))


# ---------------------------------------------------------------- what data.clean leaves out

# By the rule of `data.clean`, what it leaves out.
LEFT_OUT: dict[str, Callable[[Any], str]] = {
    "exact": lambda _: "exact copies",
    "near": lambda similarity: f"near-copies (similarity {similarity:g})",
    "min_words": lambda words: f"documents of fewer than {counted(words, 'word')}",
    "max_words": lambda words: f"documents of more than {counted(words, 'word')}",
    "max_repetition": lambda share: f"documents of which more than {100 * share:g} % is repeated",
    "languages": lambda names: f"documents that are not in {' or '.join(names)}",
}


def check_clean(job: Job) -> Iterator[CheckRow]:
    """Say what is left out of the text, and warn of evaluation sets that may be in it.

    Raises BadInput for an evaluation set that can't be read.
    """
    clean = job.data.clean
    if clean is None or is_prepared(job):
        return
    set_rules = {name: getattr(clean, name) for name in LEFT_OUT}
    rules = [LEFT_OUT[n](v) for n, v in set_rules.items() if v is not False and v not in (None, [])]
    if sets := read_sets(job):
        items = counted(sum(len(each.items) for each in sets), "item")
        rules.append(f"text with any of {items} of {counted(len(sets), 'evaluation set')}")
    yield CheckRow("data.clean", True, f"leaves out {', '.join(rules)}")
    removed = {job.input_path(path) for _, path in job.removed_sets}
    questions = job.evaluate.sets.items()
    if missing := [key for key, path in questions if job.input_path(path) not in removed]:
        sentence = (
            f"{', '.join(missing)}: not in data.clean.decontaminate, so their items may be in the "
            f"text. To leave such text out, set data.clean.decontaminate=[{OF_EVALUATE}]"
        )
        yield CheckRow("data.clean", None, sentence)
