"""Put the model that a run starts from into the run's store, and record it as the run's."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from pion.errors import BadInput, PionError
from pion.untrusted import parse_object, read_file
from pipeline.base.find import TOKENIZER, find_base
from pipeline.console.messages import Note, PrepareProgress, Say
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.models.find import CONFIG
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import WEIGHTS, bring_base, keep_base, read_pin, write_pin
from pipeline.state.stores import open_store
from pipeline.state.stores.retry import Patience


def keep_as_base(run: RunState, base: Base, folder: Path, say: Say, patiently: Patience) -> None:
    """Keep `base`, which a job in `folder` names, in the store, and record it as the run's.

    Raises BadInput if its name means another content by now, and for weights that do not fit its
    settings.
    """
    from pion.formats.huggingface.architectures import architecture_of, is_wrapper
    from pion.formats.load import load_lazily

    pinned = read_pin(run, base.source)
    if pinned is not None and pinned.hash == base.hash:
        return
    found = find_base(base.source, folder)
    if found.base.hash != base.hash:
        raise BadInput(
            f"model.from {base.source} has changed while this command started. Nothing was "
            "started. Run the same command again"
        )

    def progress(done: int, total: int) -> None:
        say(PrepareProgress("keep the model", done / 1e6, "MB", total=total / 1e6))

    patiently(partial(keep_base, run.store, base.hash, found.files, found.bring, progress))
    place = found.bring(CONFIG)
    model, _ = load_lazily(place.parent)  # raises BadInput for weights that do not fit
    patiently(partial(write_pin, run, base, replace=pinned is not None))
    say(Note(f"starts from {base}, now kept in {run.store.url}"))
    if is_wrapper(parse_object(read_file(place), CONFIG)):
        name = architecture_of(model).name
        say(
            Note(
                f"{base.source} is a model of text and images. Its vision part is left out. The "
                f"text part is trained, and published as {name}"
            )
        )


def is_pinned(job: Job, base: Base) -> bool:
    """Return whether the run has recorded this model as the one that it starts from."""
    pinned = read_pin(RunState(open_store(job.store), job.name), base.source)
    return pinned is not None and pinned.hash == base.hash


def tokenizer_of_base(job: Job, place: Path) -> Path | None:
    """Return the tokenizer.json of the job's base, with the files next to it; None without a base.

    They are read from the run's store if the run has recorded the base, else copied from the base's
    source to `place`.
    """
    base = job.base
    if base is None:
        return None
    if is_pinned(job, base):
        return bring_base(open_store(job.store), base.hash, weights=False) / TOKENIZER
    found = find_base(base.source, job.folder)
    place.mkdir(parents=True)
    for name in found.files:
        if not name.endswith(WEIGHTS):
            shutil.copyfile(found.bring(name), place / name)
    return place / TOKENIZER


def say_if_moved(run: RunState, base: Base, folder: Path, say: Say) -> None:
    """Say so if the name of the run's base means another content by now.

    Where the name can't be looked up, nothing is said: the run has what it needs.
    """
    if read_pin(run, base.source) is None:
        return
    try:
        today = find_base(base.source, folder).base
    except (PionError, OSError):
        return
    if today.hash != base.hash:
        say(
            Note(
                f"{base.source} has changed since this run began with {base}: now it is {today}. "
                "This run keeps what it began with. To start from the new one: --redo of its first "
                "training stage"
            )
        )
