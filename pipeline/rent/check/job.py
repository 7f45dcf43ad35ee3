"""Checks that are the same on every machine: model, tokenizer, data, store, publishing, and whether
the workers and the disk suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pion.errors import BadInput, PionError
from pipeline.console.formats import amount, counted, size
from pipeline.data.compared_text import check_text
from pipeline.data.tokenizer import named_tokenizer
from pipeline.job import (
    BinShards,
    HubDataset,
    HubNpyShards,
    Job,
    NpyShards,
    PythonDocs,
    PythonDocsPrefer,
    PythonDocsQA,
    Source,
)
from pipeline.job.prefer_section import Prefer
from pipeline.job.section import mistakes_of
from pipeline.machine.time_limit import within
from pipeline.rehearsal.rehearse import STORE_SECONDS, prepare_record, records_of
from pipeline.rent.check import CheckRow, failure
from pipeline.run.done_and_changed_stages import WorkLeft, work_left
from pipeline.run.inputs import changed_inputs
from pipeline.run.preflight import refuse_one_choice, require_a_row_each, require_room
from pipeline.state.checkpoints.restore import refuse_other_formats
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError, open_store
from pipeline.state.stores.errors import before_work
from pipeline.workers.cluster_size import cluster_of

# With higher rates of AdamW, models are often spoiled: of all weights, and of LoRA. Small models
# take rates so many times higher. With rates of `reinforce` FAR below, rewards hardly rise.
HIGHEST_LR = {
    "pretrain": (5e-3, 5e-3),
    "sft": (1e-3, 5e-3),
    "prefer": (1e-5, 1e-4),
    "reinforce": (2e-5, 2e-4),
}
OF_SMALL, LARGE = {"pretrain": 10, "sft": 10, "reinforce": 100}, 300_000_000
FAR = 100
# For simpo, this share of these: Meng et al. saw answers that only repeat at 1e-5.
SIMPO_SHARE = 0.5
# Fewer rows of a model without an entry round its vocabulary up, which may be faster.
UNUSED = 128
# The highest of the rates that have other scales.
HIGHEST = {"muon_lr": 0.2, "embedding_lr": 2.0, "head_lr": 0.2, "vector_lr": 0.5}


def check_model(job: Job) -> list[CheckRow]:
    """Show the model, its size, and the stages that train additions to it."""
    from pion.config.lora import lora_cost

    preset = job.model.preset or "the job's own shape"
    name = preset if job.base is None else job.base.source
    parts, config = (
        [f"{name}: {amount(count_parameters(job))} parameters"],
        job.model_config_resolved(),
    )
    for stage in job.train_stages:
        if (lora := job.lora(stage)) is not None:
            parts.append(f"{stage} trains {amount(lora_cost(config, lora).params)} of LoRA instead")
    scaling = config.rope_scaling
    if scaling is not None and scaling.long_in(config.seq_len):
        original = scaling.original_max_position_embeddings
        parts.append(
            f"seq_len {config.seq_len:,} is more than the {original:,} tokens of the short rotary "
            "factors, so all texts use the long ones"
        )
    return [CheckRow("model", True, "; ".join(parts))]


def count_parameters(job: Job) -> int:
    """Return how many parameters the job's model has."""
    from pion.model.params_and_flops import cost_of

    return cost_of(job.model_config_resolved()).all_params


def check_rates(job: Job) -> Iterator[CheckRow]:
    """Warn of rates at which models are often spoiled, or learn nothing."""
    small = count_parameters(job) < LARGE
    for stage in job.train_stages:
        section, anchor, then = job.section(stage), "", "learn nothing any more"
        highest = HIGHEST_LR[stage][job.lora(stage) is not None]
        if stage == "reinforce" and section.lr < (least := highest / FAR):
            sentence = (
                f"reinforce.lr {section.lr:g} is below {least:g}: rewards hardly rise. Raise it"
            )
            yield CheckRow("rate", None, sentence)
        if stage in ("prefer", "reinforce"):
            then = "begin to repeat themselves"
        if isinstance(section, Prefer) and section.loss == "simpo":
            highest *= SIMPO_SHARE
            anchor = "simpo has no reference that holds the model back, and "
        highest *= OF_SMALL.get(stage, 1) if small else 1
        for name, most in {**HIGHEST, "lr": highest}.items():
            rate = getattr(section, name)
            is_used = name != "muon_lr" or section.optimizer == "muon"
            if is_used and rate is not None and rate > most:
                sentence = f"above {most:g}: {anchor}models then often {then}. Lower it"
                yield CheckRow("rate", None, f"{stage}.{name} {rate:g} is {sentence}")


def check_tokenizer(job: Job) -> list[CheckRow]:
    """Check that the tokenizer can be loaded and fits the model's vocabulary."""
    from pion.data.tokens.tokenizer import MORE_ROWS, Tokenizer

    section = job.tokenizer
    if section is None:
        assert job.base is not None
        return [CheckRow("tokenizer", True, f"that of {job.base.source}")]
    rows = job.model_config_resolved().vocab_size
    if section.train is not None:
        if all(isinstance(s, NpyShards | BinShards | HubNpyShards) for s in job.data.sources):
            raise BadInput(
                "tokenizer.train: every data source is already tokenized. Name its tokenizer with "
                "tokenizer.file or tokenizer.hub"
            )
        entries = section.train.vocab_size
        both = (
            f"tokenizer.train.vocab_size is {entries:,}, and model.vocab_size is {rows:,}: set "
            "both to one number"
        )
        if entries > rows:
            raise BadInput(f"the tokenizer may have more entries than the model has rows. {both}")
        sentence = f"a BPE of {entries:,} entries will be trained on data.sources"
        if rows - entries < UNUSED:
            return [CheckRow("tokenizer", True, sentence)]
        sentence += f", and {rows - entries:,} rows of the model are never used. {both}"
        return [CheckRow("tokenizer", None, sentence)]
    path = named_tokenizer(job)
    assert path is not None
    if not path.is_file():
        raise BadInput(f"tokenizer.file: {path} does not exist")
    where = section.file or f"Hub model {section.hub}"
    tokenizer = Tokenizer.from_file(path)
    tokenizer.fits(rows, f"tokenizer: {where}", MORE_ROWS)
    return [CheckRow("tokenizer", True, f"{where}: {tokenizer.vocab_size:,} entries")]


def check_data(job: Job) -> Iterator[CheckRow]:
    """Check that every source exists and that its first record can be read as the job asks.

    If the store already has the prepared data, no source is needed.
    """
    if is_prepared(job):
        yield CheckRow("data", True, "already prepared, in the store")
        return
    for key, source in job.sources():
        try:
            yield CheckRow(key, True, _first_record(job, source, key))
        except PionError as error:
            yield failure(key, error)


def _first_record(job: Job, source: Source, key: str) -> str:
    """Read the start of a source as `prepare` will, and describe it. Raises BadInput if that
    fails."""
    from pion.data.shards import open_shard
    from pipeline.data.hub import hub_shards
    from pipeline.data.sources import find_input

    if isinstance(source, PythonDocs | PythonDocsQA | PythonDocsPrefer):
        return f"{source.kind}: the standard library of the machine"
    origin = find_input(job, source, key)
    if isinstance(source, HubNpyShards):
        shards = hub_shards(source, origin.commit, job.data.seq_len)
        rows = sum(shard.rows for shard in shards)
        return f"{source.repo} at {origin.commit[:12]}: {len(shards)} shards, {rows:,} rows"
    if isinstance(source, NpyShards | BinShards):
        for path in origin.files:
            open_shard(path, job.data.seq_len)
    elif next(records_of(job, origin, own=job.base is None), None) is None:
        raise BadInput(f"{key}: it has no records")
    if isinstance(source, HubDataset):
        return f"{source.repo} at {origin.commit[:12]}: the first record can be read"
    total = sum(path.stat().st_size for path in origin.files)
    return ". ".join((f"{counted(len(origin.files), 'file')}, {size(total)}", *origin.left_out))


def is_prepared(job: Job) -> bool:
    """Return whether the store already has the job's prepared data; False if it does not answer."""
    return prepare_record(job) is not None


def check_store(job: Job) -> Iterator[CheckRow]:
    """Check that the store can hold the run, and show what the run still has to do.

    Raises BadInput if it can't, if the job would invalidate committed work, and for checkpoints of
    another version's format.
    """
    opened = open_store(job.store)
    run = RunState(opened, job.name)
    try:
        with before_work("The run could not start."):  # the store is down or does not exist
            note, left = within(
                STORE_SECONDS, lambda: (opened.probe(run.key("")), work_left(job, run))
            )
    except TimeoutError as error:
        raise BadInput(f"{opened.url}: {error}; the store is down or can't be reached") from None
    sentence = (
        "can be read and written, and refuses a commit based on an outdated one"
        if opened.commits
        else "reading, writing, compare-and-swap and deleting work"
    )
    yield CheckRow("store", True, ". ".join(filter(None, (f"{opened.url}: {sentence}", note))))
    if left.head is None:
        mistakes = mistakes_of(refuse_one_choice, job)
        yield from (CheckRow("model.experts", False, sentence) for sentence in mistakes)
    elif not left.finished():
        refuse_other_formats(run, left.head)
    yield CheckRow("run", True, f"{job.name}{_in_words(left)}")
    # A file that changed is named. The first content is in the store, which may be down by now.
    with contextlib.suppress(BadInput, StoreError):
        yield from (CheckRow("inputs", None, w) for w in changed_inputs(job, run, left.head))
    if isinstance(opened, FileStore):
        mistakes = mistakes_of(require_room, job, run, left)
        yield from (CheckRow("room", False, sentence) for sentence in mistakes)


def _in_words(left: WorkLeft) -> str:
    if left.head is None:
        return " is new"
    if left.finished():
        return " is already finished"
    done = [p.stage for p in left.plans if p.state == "done"] or ["nothing"]
    begun = [f"{p.stage} {p.why}" for p in left.plans if p.state == "resume"] or ["continues"]
    owner = f"; owned by {left.head.owner.describe()}" if left.head.owner else ""
    return f": done {', '.join(done)}; {', '.join(begun)}{owner}"


def check_evaluate(job: Job, *, rented: bool = False) -> Iterator[CheckRow]:
    """Check that questions and the text to compare on can be read, and that the job's metric
    trackers are installed and keep what they write."""
    from pipeline.stages.evaluate_core import read_questions_of
    from pipeline.training.stage_metrics import check_trackers

    check_trackers(job, rented=rented)
    if job.evaluate.text is not None:
        yield CheckRow("evaluate.text", True, f"{check_text(job).path} can be read")
    questions = read_questions_of(job)
    if questions.packs:
        yield CheckRow("evaluate.packs", True, f"{len(questions.packs)} can be read")
    if questions.core is not None:
        sentence = f"{counted(len(questions.core.tasks), 'task')} can be read, bundle "
        yield CheckRow("evaluate.core", True, sentence + questions.core.digest[:12])


def check_names(job: Job) -> Iterator[CheckRow]:
    """Find the name that stands for a person's own in Pion's examples."""
    urls = {"store": job.store, "publish.to": job.publish.to if job.publish else ""}
    for key, url in urls.items():
        if url.startswith("hf://USER/"):
            sentence = f"{key} {url}: USER stands for your own name on the Hub (`hf auth whoami`)"
            yield CheckRow("names", False, f"{sentence}. Write that name in its place")


def check_publish(job: Job) -> Iterator[CheckRow]:
    """Check that the token may write to the target, and that the target is new or ours."""
    from pipeline.run.preflight_publish import check_target

    if job.publish is not None:
        notes = check_target(job)
        sentence = "; ".join(notes) or f"{job.publish.to} can be written"
        yield CheckRow("publish", None if notes else True, sentence)


def check_workers(job: Job) -> list[CheckRow]:
    """Check that each worker that the job asks for has a row of each batch, and that the Ray in
    which their number may change has room for the fewest."""
    require_a_row_each(job, job.hardware.max_workers or 1)
    if not job.hardware.elastic:
        return []
    cluster = cluster_of(job)
    sentence = f"{job.hardware.workers_in_words} in a Ray with {counted(cluster.gpus, 'GPU')}"
    return [CheckRow("workers", True, f"{sentence} and {counted(cluster.cpus, 'CPU')}")]
