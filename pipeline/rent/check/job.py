"""Checks of a job that hold on any machine: model, tokenizer, data, store, publishing."""

from __future__ import annotations

from collections.abc import Iterable

from pion.errors import BadInput, PionError
from pipeline.digest import Inputs, digest_job
from pipeline.find_model import HUB_REPO, find_model, read_run
from pipeline.formats import size
from pipeline.job import (
    BinShards,
    HubDataset,
    HubNpyShards,
    Job,
    NpyShards,
    PythonDocs,
    PythonDocsQA,
    Source,
)
from pipeline.plan import (
    Refusal,
    first_stale,
    goes_on_under_another_digest,
    plan_stages,
)
from pipeline.rent.check.row import CheckRow
from pipeline.rent.deadline import within
from pipeline.state.head import RunState
from pipeline.state.records import Head
from pipeline.state.stores import Store, StoreError, open_store

STORE_SECONDS = 8.0
"""A store that takes longer to answer would not do."""


def model(job: Job) -> list[CheckRow]:
    """The model's size, and that the weights to start from exist."""
    name, millions = job.model.preset or "the job's own shape", count_parameters(job) / 1e6
    rows = [CheckRow("model", True, f"{name}: {millions:,.1f} million parameters")]
    for stage in job.train_stages:
        source = job.section(stage).init_from
        if source is not None:
            rows.append(CheckRow(f"{stage}.init_from", True, _starting_weights(job, source)))
    return rows


def count_parameters(job: Job) -> int:
    """How many the job's model has."""
    import torch

    from pion.model.decoder import Decoder

    with torch.device("meta"):
        return Decoder(job.model_config_resolved()).num_params()


def _starting_weights(job: Job, source: str) -> str:
    """Where a model to start from is, without downloading it. Raises BadInput if nowhere."""
    from pipeline.data.hub import pin

    path = job.input_path(source)
    if path.exists():
        return f"{find_model(str(path)).label} ({path})"
    repo = source.removeprefix("hf://")
    if HUB_REPO.fullmatch(repo):
        name, _, revision = repo.partition("@")
        return f"Hub model {name} at {pin(name, revision or None, 'model')[:12]}"
    if "://" in source:
        state, head = read_run(source.partition("@")[0])
        if not head.checkpoints:
            raise BadInput(f"init_from {source}: the run has no checkpoint yet")
        return f"run {state.name} in {state.store.url}"
    return find_model(source).label


def tokenizer(job: Job) -> list[CheckRow]:
    """That the tokenizer can be loaded and fits the model's vocabulary."""
    from pion.data.tokenizer import Tokenizer

    section = job.tokenizer
    if section.train is not None:
        words = f"a BPE of {section.train.vocab_size:,} entries is trained on data.sources"
        readable = [s for s in job.data.sources if not _is_tokenised(s)]
        if not readable:
            raise BadInput("tokenizer.train: every data source is tokenised already; name theirs")
        return [CheckRow("tokenizer", True, words)]
    if section.file is not None:
        path = job.input_path(section.file)
        if not path.is_file():
            raise BadInput(f"tokenizer.file: {path} does not exist")
        where = section.file
    else:
        from pipeline.data.hub import hub_tokenizer

        assert section.hub is not None
        path = hub_tokenizer(section.hub, section.revision, section.hub_file)
        where = f"Hub model {section.hub}"
    found = Tokenizer.from_file(path)
    found.fits(job.model_config_resolved().vocab_size, f"tokenizer: {where}")
    return [CheckRow("tokenizer", True, f"{where}: {found.vocab_size:,} entries")]


def data(job: Job) -> list[CheckRow]:
    """That every source exists and its first record can be read as the job wants it.

    Prepared data that the store has already needs no source.
    """
    if is_prepared(job):
        return [CheckRow("data", True, "prepared already; the store has it")]
    rows = []
    for key, source in sources_of(job):
        try:
            rows.append(CheckRow(key, True, _first_record(job, source, key)))
        except BadInput as error:
            rows.append(CheckRow(key, False, str(error)))
        except PionError as error:  # the Hub can't be reached
            rows.append(CheckRow(key, None, str(error)))
    return rows


def sources_of(job: Job) -> list[tuple[str, Source]]:
    """(key, source) of all data of the job."""
    found: list[tuple[str, Source]] = []
    found += [(f"data.sources.{n}", source) for n, source in enumerate(job.data.sources)]
    if job.sft is not None:
        found += [(f"sft.sources.{n}", source) for n, source in enumerate(job.sft.sources)]
    return found


def _first_record(job: Job, source: Source, key: str) -> str:
    """Look at a source as `prepare` will. Raises BadInput for what it could not read."""
    from pion.data.shards import open_shard
    from pipeline.data.hub import hub_shards
    from pipeline.data.sources import conversations, find_input, texts

    if isinstance(source, PythonDocs | PythonDocsQA):
        return f"{source.kind}: the standard library of the machine"
    found = find_input(job, source, key)
    if isinstance(source, NpyShards | BinShards):
        for path in found.files:
            open_shard(path, job.data.seq_len)
    elif isinstance(source, HubNpyShards):
        shards = hub_shards(source, found.commit, job.data.seq_len)
        rows = sum(shard.rows for shard in shards)
        return f"{source.repo} at {found.commit[:12]}: {len(shards)} shards, {rows:,} rows"
    else:
        read: Iterable[object]
        read = conversations(job, found) if key.startswith("sft.") else texts(job, found)
        if next(iter(read), None) is None:
            raise BadInput(f"{key}: there is nothing in it")
    if isinstance(source, HubDataset):
        return f"{source.repo} at {found.commit[:12]}: the first record can be read"
    total = sum(path.stat().st_size for path in found.files)
    files = "1 file" if len(found.files) == 1 else f"{len(found.files)} files"
    return f"{files}, {size(total)}"


def _is_tokenised(source: Source) -> bool:
    return isinstance(source, NpyShards | BinShards | HubNpyShards)


def is_prepared(job: Job) -> bool:
    """Whether the store has the job's data already, as far as it can be asked."""
    try:
        head = within(STORE_SECONDS, RunState(open_store(job.store), job.name).read)
    except (PionError, TimeoutError):  # the store's own check says so
        return False
    (prepare, *_) = plan_stages(job, digest_job(job), head)
    return prepare.state == "done"


def store(job: Job) -> list[CheckRow]:
    """That the store can hold the run, and what is left to do there."""
    opened = open_store(job.store)
    run = RunState(opened, job.name)

    def ask() -> Head | None:
        opened.probe(run.key(""))
        return run.read()

    try:
        head = within(STORE_SECONDS, ask)
    except StoreError as error:  # down, or nothing there: the run could not start either
        raise BadInput(str(error)) from error
    except TimeoutError as error:
        raise BadInput(f"{opened.url}: {error}; it is down, or can't be reached") from None
    rows = [CheckRow("store", True, f"{opened.url}: {_probed(opened)}")]
    return [*rows, CheckRow("run", True, _left(job, run, head))]


def _probed(opened: Store) -> str:
    if opened.commits:
        return "can be read and written, and refuses a commit upon an outdated one"
    return "read, written, compared and swapped, deleted"


def _left(job: Job, run: RunState, head: Head | None) -> str:
    """What the run has still to do. Raises BadInput if going on would invalidate work."""
    if head is None:
        return f"{job.name} is new"
    digests = digest_job(job)
    plans = plan_stages(job, digests, head)
    stale = first_stale(plans)

    def read_inputs(stage: str, digest: str) -> Inputs | None:
        kept = run.read_stage(stage, digest)
        return kept["inputs"] if kept else None

    if stale and not goes_on_under_another_digest(job, stale, digests, head, read_inputs):
        raise BadInput(Refusal(job, "JOB", digests, read_inputs).text(stale, plans))
    if all(plan.state == "done" for plan in plans):
        return f"{job.name} is finished already"
    begun = [f"{p.stage} {p.why}" for p in plans if p.state == "resume"]
    done = [p.stage for p in plans if p.state == "done"]
    owner = f"; owned by {head.owner.describe()}" if head.owner else ""
    return (
        f"{job.name}: done {', '.join(done) or 'nothing'}; {', '.join(begun) or 'goes on'}{owner}"
    )


def evaluate(job: Job) -> list[CheckRow]:
    """That packs of questions can be read, and that what reports metrics is installed."""
    from pipeline.stages.evaluate import read_packs
    from pipeline.training.trackers import check_trackers

    check_trackers(job)
    if not job.evaluate.packs:
        return []
    read_packs(job)
    return [CheckRow("evaluate.packs", True, f"{len(job.evaluate.packs)} can be read")]


def publish(job: Job) -> list[CheckRow]:
    """That the token may write to the target, which is free or ours."""
    from pipeline.stages.publish import check_target

    if job.publish is None:
        return []
    notes = check_target(job)
    if notes:
        return [CheckRow("publish", None, "; ".join(notes))]
    return [CheckRow("publish", True, f"{job.publish.to} may be written")]
