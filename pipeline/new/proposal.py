"""From what was seen of the data to a whole job: sized by the rules, rehearsed, and priced."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import mul
from pathlib import Path
from typing import Any

from pion.data.documents.languages import ENGLISH
from pion.data.documents.python_docs import documents
from pion.errors import TooFewRows
from pipeline.console.masking import masked
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job
from pipeline.job.file import job_of_text
from pipeline.job.model_section import Base
from pipeline.job.stages import TRAINING
from pipeline.new.base import LookedUp
from pipeline.new.data_set import DataSet
from pipeline.new.job_text import BUILT_IN, Proposal, job_text, lines_of, source_of
from pipeline.new.options import NewOptions
from pipeline.new.rules import (
    MOST_FIT,
    Amount,
    FineTuning,
    Pretraining,
    StartModel,
    continued,
    default_base,
    fine_tuning,
    pretrainings,
)
from pipeline.rehearsal.rehearse import StageData, rehearse

# A tokenizer is tried on about so many texts, of so many characters.
TRIED, TRIED_CHARACTERS = 500, 2_000
# So many bytes of a source are rehearsed.
REHEARSED_BYTES = 500_000
# By stage, what its data give.
DataOfStages = Mapping[str, StageData]
# What is held out is tried in these shares, if the share that the rules say holds out nothing.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)


def default_start(data_sets: Sequence[DataSet]) -> str | None:
    """Return the model to start from by the rules; None: random weights."""
    most = [data.languages.most_common(1)[0][0] for data in data_sets]
    return default_base(*_amounts(data_sets), english=all(language == ENGLISH for language in most))


def propose(
    options: NewOptions, data_sets: Sequence[DataSet], base: LookedUp | None
) -> tuple[Proposal, DataOfStages]:
    """Return a job for what was seen, and what the data of each stage give.

    Raises BadInput if it is no valid job, or its data can't be used.
    """
    texts, others = _amounts(data_sets)
    sources: dict[str, list[Mapping[str, object]]] = {stage: [] for stage in TRAINING}
    for data in data_sets:
        sources[data.stage].append(source_of(data, data.path, options.folder))
    if base is None and not sources["pretrain"]:
        sources["pretrain"] = [BUILT_IN]
        lengths = sorted(len(document.text.encode()) for document in documents(False))
        texts = Amount(sum(lengths), len(lengths), lengths[int(0.9 * len(lengths))])
    start = None if base is None else _start(base, data_sets)
    p = Proposal(options, data_sets, texts, others, base, sources, _prompt_from(data_sets), start)
    # Stages of all sizes that suit the text, the largest first.
    sizes: list[Pretraining | None] = [None]
    if start is None:
        sizes = [*pretrainings(texts, stock=options.stock)]
    elif sources["pretrain"]:
        sizes = [continued(texts, start)]
    tuning = None if p.last == "pretrain" else _tuning(p)
    p = replace(p, pretraining=sizes[0], tuning=tuning)
    if base is not None and base.base is None:
        return replace(p, price="not known before the model is looked up"), {}
    # What the data can't be used for is found before anybody is asked for prices.
    with (
        saying_if_slow("trying the job on the head of the data"),
        tempfile.TemporaryDirectory(prefix="pion-new-") as folder,
    ):
        p, stages = _rehearsed(p, Path(folder))
    with saying_if_slow("looking up the prices of machines"):
        from pipeline.new.price import affordable  # torch takes seconds to import

        share = 0.0 if p.pretraining is None else p.pretraining.held_out
        held = (size and size.holding_out(share) for size in sizes)
        return affordable((replace(p, pretraining=size) for size in held), _job_of), stages


def _amounts(data_sets: Sequence[DataSet]) -> tuple[Amount, Amount]:
    """Return how much text there is to learn from, and how much else."""
    texts = [data for data in data_sets if data.stage == "pretrain"]
    return _amount(texts), _amount([data for data in data_sets if data not in texts])


def _amount(data_sets: Sequence[DataSet]) -> Amount:
    longest = (data.length(MOST_FIT if data.stage == "prefer" else 0.9) for data in data_sets)
    return Amount(
        sum(data.all_text_bytes for data in data_sets),
        sum(data.all_records * (data.paragraphs or 1) for data in data_sets),
        max(longest, default=0),
    )


def _prompt_from(data_sets: Sequence[DataSet]) -> str | None:
    """Return a text to ask during training: a question of the data, or the beginning of a text."""
    for data in sorted(data_sets, key=lambda data: data.stage == "pretrain"):
        for line in (content.question for content in data.contents[:3]):
            if line and len(line) <= 200 and line.isprintable() and masked(line) == line:
                return line
    return None


def _start(base: LookedUp, data_sets: Sequence[DataSet]) -> StartModel:
    contents = [content for data in data_sets for content in data.contents]
    some = contents[:: max(1, len(contents) // TRIED)]
    return base.start([text[:TRIED_CHARACTERS] for content in some for text in content.texts])


def _tuning(p: Proposal, needed: int = 0) -> FineTuning:
    sides = len(p.learned[0].contents[0].texts)  # of a pair of answers, two
    return fine_tuning(p.last, p.others, p.start, sides, needed)


# ---------------------------------------------------------------- a rehearsal


def _rehearsed(p: Proposal, folder: Path) -> tuple[Proposal, DataOfStages]:
    """Rehearse a proposal, with copies of the sample below a folder; return it with the rows that
    there are, and what the data of each stage give.

    Raises BadInput for data that a run would refuse.
    """
    sources = {stage: [s for s in p.sources[stage] if s is BUILT_IN] for stage in TRAINING}
    for data in p.data_sets:
        path = data.path
        if data.copied:
            path = folder / data.path.name
            lines = (json.dumps(one.record, default=str) + "\n" for one in data.contents)
            path.write_text("".join(lines), encoding="utf-8")
        sources[data.stage].append(source_of(data, path, p.options.folder))
    try:
        tried, stages = _holding_out(p, sources, folder)
    except TooFewRows as error:
        # What a template adds to a conversation, such as SmolLM3's system message, is not measured.
        if not error.fits:
            raise
        p = replace(p, tuning=_tuning(p, error.fits))
        tried, stages = _holding_out(p, sources, folder)
    stage = stages.get(p.last)
    if tried.tuning is None or stage is None:
        return tried, stages
    needed = max((s.keeps_most for s in stage.summaries.values()), default=stage.fits)
    better = _tuning(tried, needed)
    if better.seq_len != tried.tuning.seq_len:
        tried, stages = _holding_out(replace(tried, tuning=better), sources, folder)
    factors = (data.sample.factor if data.copied else 1.0 for data in p.learned)
    rows = max(1, round(sum(map(mul, stages[p.last].rows, factors))))
    assert tried.tuning is not None
    return replace(tried, tuning=tried.tuning.of_rows(rows, p.others.count)), stages


def _holding_out(
    p: Proposal, sources: Mapping[str, Sequence[Mapping[str, object]]], folder: Path
) -> tuple[Proposal, DataOfStages]:
    """Rehearse a proposal with these sources; return it with a share of them held out that holds
    out something, and what the data of each stage give. Raises BadInput as `_rehearsed` does."""
    for share in SHARES:
        tried = replace(
            p,
            pretraining=p.pretraining and p.pretraining.holding_out(share),
            tuning=p.tuning and p.tuning.holding_out(share),
        )
        rehearsed = rehearse(_job_of(replace(tried, sources=sources)), most=REHEARSED_BYTES)
        failed = next(iter(rehearsed.failed.values()), None)
        empty = failed if isinstance(failed, TooFewRows) else None
        if empty is None or empty.split == "train" or empty.fits:
            break
    if failed is not None:
        why = _in_the_data(str(failed), p.data_sets, folder)
        why = why.replace("Nothing was trained. ", "").rstrip(".")
        failed.args = (f"a run would stop: {why}. Nothing was written.",)
        raise failed
    return tried, {
        name: replace(
            stage,
            notes=[_in_the_data(message, p.data_sets, folder) for message in stage.notes],
            warnings=[_in_the_data(message, p.data_sets, folder) for message in stage.warnings],
        )
        for name, stage in rehearsed.stages.items()
    }


def _in_the_data(message: str, data_sets: Sequence[DataSet], folder: Path) -> str:
    """Return a message with the names of a person's files and their lines, in place of those of
    copies below a folder."""
    for path in (data.group.path for data in data_sets):
        message = message.replace(str(path.absolute()), str(path))
    copies = {data.path.name: data for data in data_sets if data.copied}

    def where(match: re.Match[str]) -> str:
        data, line = copies[match[1]], match[2]
        return data.contents[int(line) - 1].where if line else str(data.group.path)

    names = "|".join(map(re.escape, copies))
    return re.sub(rf"[^\s(]*{folder.name}/({names})(?::(\d+))?", where, message)


def _job_of(p: Proposal) -> Job:
    """Return the job that is proposed, with its number of rows."""

    def find(values: dict[str, Any]) -> Base:
        assert p.base is not None
        assert p.base.base is not None
        return p.base.base

    job = job_of_text(job_text(lines_of(p)), p.options.target, find)
    if p.tuning is not None:
        job.section(job.train_stages[-1]).know_rows(p.tuning.rows)
    return job
