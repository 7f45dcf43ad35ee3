"""Check amounts: too few rows and too little room, which `pion run` refuses only after a while, and
too little text for a vocabulary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pion.errors import BadInput
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.formats import size
from pipeline.data.sources import find_input
from pipeline.job import Job, JsonlFiles, ParquetFiles, TextFiles
from pipeline.rent.check.of_job import count_parameters, is_prepared
from pipeline.rent.check.row import CheckRow
from pipeline.run.preflight import require_a_row_each
from pipeline.run.stage_plan import work_left
from pipeline.stages.prepare import prepare_pretrain
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store

# Texts of more bytes are not counted: that would take long, and they fill a batch.
COUNTED_BYTES = 4_000_000
# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096
# A checkpoint has at least a float32 weight and one moment for each number that it learns.
LEAST_BYTES = 8


def check_workers(job: Job) -> list[CheckRow]:
    """Check that each worker that the job asks for has a row of each batch."""
    require_a_row_each(job, job.hardware.workers or 1)
    return []


def check_corpus(job: Job) -> list[CheckRow]:
    """Check that a small corpus in files fills a batch, by preparing it in a temporary folder."""
    if job.pretrain is None or not _is_small(job) or is_prepared(job):
        return []
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder, tokenizer = Path(place), None
        if job.base is not None:
            run = RunState(open_store(job.store), job.name)
            tokenizer = tokenizer_of_base(run, job.base, job.folder, folder / "base")
        prepare_pretrain(job, folder / "pretrain", lambda message: None, tokenizer)
    return []


def check_vocabulary(job: Job) -> list[CheckRow]:
    """Warn of a vocabulary that is to be trained on too little text."""
    train = None if job.tokenizer is None else job.tokenizer.train
    if train is None or is_prepared(job):
        return []
    try:
        total = _text_bytes(job)
    except BadInput:  # the check of the data says it
        return []
    if total is None:
        return []
    read = min(total, int(train.max_mb * 1e6))
    most = max(FEW_ENTRIES, read // BYTES_PER_ENTRY)
    if train.vocab_size <= most:
        return []
    words = (
        f"{train.vocab_size:,} entries are more than one for each kilobyte of text: they are "
        f"trained on {size(read)}. Entries that occur a few times are never learned well, and each "
        f"has a row of the model. Add text, or set tokenizer.train.vocab_size={most}"
    )
    return [CheckRow("vocabulary", None, words)]


def _is_small(job: Job) -> bool:
    total = _text_bytes(job)
    return total is not None and total <= COUNTED_BYTES


def _text_bytes(job: Job) -> int | None:
    """Return the size of the texts; None if they are not all in uncompressed files."""
    total = 0
    for number, source in enumerate(job.data.sources):
        if not isinstance(source, TextFiles | JsonlFiles | ParquetFiles):
            return None
        files = find_input(job, source, f"data.sources.{number}").files
        if any(file.suffix in (".gz", ".parquet") for file in files):
            return None
        total += sum(file.stat().st_size for file in files)
    return total


def check_room(job: Job) -> list[CheckRow]:
    """Check that a store on this disk has room for a checkpoint, if training is left to do."""
    opened = open_store(job.store)
    if not isinstance(opened, FileStore) or work_left(job, RunState(opened, job.name)).finished():
        return []
    needed = LEAST_BYTES * count_parameters(job) if _trains_all(job) else 0
    folder = opened.folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"{opened.url} has {size(free)} free, and a checkpoint needs {size(needed)} or more. "
            "Make room, or set store to a place with room."
        )
    return []


def _trains_all(job: Job) -> bool:
    return any(job.lora(stage) is None for stage in job.train_stages)
