"""Check amounts that `pion run` refuses: too few rows for the workers, too little room, and a spent
budget. Warn of too little text for a vocabulary."""

from __future__ import annotations

from pion.errors import BadInput
from pipeline.console.formats import size
from pipeline.cost.budget import check_budget, price_per_hour
from pipeline.job import Job
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.machines import already_spent
from pipeline.rent.check.row import CheckRow
from pipeline.rent.check.texts import text_bytes
from pipeline.run.disk_room import require_room
from pipeline.run.preflight import require_a_row_each
from pipeline.run.stage_plan import work_left
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store

# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096


def check_workers(job: Job) -> list[CheckRow]:
    """Check that each worker that the job asks for has a row of each batch."""
    require_a_row_each(job, job.hardware.workers or 1)
    return []


def check_spent(job: Job) -> list[CheckRow]:
    """Check that the budget is not spent; warn if its dollars can't be counted on this machine."""
    over = already_spent(job)
    if over is not None:
        raise BadInput(over)
    try:
        check_budget(job.budget, price_per_hour(job.budget))
    except BadInput as error:
        return [CheckRow("budget", None, f"`pion run` on this machine would say: {error}")]
    return []


def check_vocabulary(job: Job) -> list[CheckRow]:
    """Warn of a vocabulary that is to be trained on too little text."""
    train = None if job.tokenizer is None else job.tokenizer.train
    if train is None or is_prepared(job):
        return []
    try:
        total = text_bytes(job, "data")
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


def check_room(job: Job) -> list[CheckRow]:
    """Check that a store on this disk has room for a checkpoint, if training is left to do."""
    run = RunState(open_store(job.store), job.name)
    if isinstance(run.store, FileStore):
        try:
            left = work_left(job, run)
        except BadInput:  # the check of the store says it
            return []
        require_room(job, run, left)
    return []
