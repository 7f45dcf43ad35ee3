"""Say what it costs if a rental with GPUs finds text that nobody has prepared."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pion.errors import BadInput, PionError
from pipeline.console.formats import duration, money, size
from pipeline.data.sources import find_input
from pipeline.job import HubDataset, Job, JsonlFiles, ParquetFiles, TextFiles
from pipeline.job.digest import digest_job
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.machines import cheapest_offer
from pipeline.rent.plan.prepare_seconds import prepare_seconds
from pipeline.rent.plan.speeds import NOTHING_KNOWN, prepare_speed
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.stages.prepare_text import LEAST_BYTES
from pipeline.state.shared.records import read_state
from pipeline.state.stores import open_store

NAME = "prepare"
# For less text than this, another machine would not save money.
LITTLE_BYTES = 10 * 10**6
# More text than this is not read to find out whether the store has it prepared.
HASHED_BYTES = 10**9


@dataclass(frozen=True)
class _Text:
    """The text to tokenize: the bytes of local files, the keys of sources of unknown size, and
    whether files are compressed, so that they have more text than bytes."""

    known: int
    unknown: tuple[str, ...]
    compressed: bool

    def __str__(self) -> str:
        least = "at least " if self.unknown or self.compressed else ""
        words = f"{least}{size(self.known)} of text" if self.known else ""
        others = f"{', '.join(self.unknown)} (size not known)" if self.unknown else ""
        return " and ".join(filter(None, (words, others)))


def check_prepare(job: Job, sky_yaml: SkyYaml, path: str | None, *, force: bool) -> list[CheckRow]:
    """Say how much text a machine with GPUs would tokenize, how long that takes and what it costs,
    and how to prepare on a machine without a GPU. Never refuses.

    Returns nothing without GPUs, for prepared data, and where there is nothing to tokenize.
    `path` is the job file; `force` accepts a spot price above the on-demand price.
    """
    if not any(candidate.gpu for candidate in sky_yaml.candidates) or is_prepared(job):
        return []
    try:
        text = _text(job)
    except BadInput:  # the data's own check reports it
        return []
    if not (text.known or text.unknown) or _store_has(job, text):
        return []
    words = f"{text} will be tokenized on the rented machine{_cost(job, sky_yaml, text, force)}"
    if text.known < LITTLE_BYTES and not text.unknown:
        return [CheckRow(NAME, True, words)]
    advice = (
        "No GPU helps with that. Prepare on a machine without one first: pion launch "
        f"{path or 'JOB'} --on sky/cpu-prepare.yaml, with the same overrides"
    )
    return [CheckRow(NAME, None, f"{words}. {advice}")]


def _text(job: Job) -> _Text:
    """Return the text that would be tokenized, without the standard library, which is little."""
    files = [
        path
        for key, source in job.sources()
        if isinstance(source, TextFiles | JsonlFiles | ParquetFiles)
        for path in find_input(job, source, key).files
    ]
    return _Text(
        known=sum(path.stat().st_size for path in files),
        unknown=tuple(key for key, source in job.sources() if isinstance(source, HubDataset)),
        compressed=any(path.suffix in (*PACKED_SUFFIXES, *PARQUET_SUFFIXES) for path in files),
    )


def _cost(job: Job, sky_yaml: SkyYaml, text: _Text, force: bool) -> str:
    """Return the seconds and dollars, as far as a speed was measured and a price is known."""
    found = prepare_speed(job)
    if found is None:
        return ", at a speed that was not measured yet"
    on = f" on {found.cores} cores" if found.cores else ""
    measured = f"{found.mb_per_second:g} MB/s (measured{on} in run {found.run})"
    if not text.known:
        return f", at {measured}"
    offer = cheapest_offer(job, sky_yaml, NOTHING_KNOWN, attrgetter("gpu"), force=force)
    cores = None if offer is None else offer.cores
    in_pieces = text.known >= LEAST_BYTES
    seconds = prepare_seconds(text.known / 1e6, found, cores, in_pieces=in_pieces)
    least = "at least " if text.unknown or text.compressed else ""
    words = f": {least}{duration(seconds)} at {measured}"
    if cores and found.cores and cores != found.cores:
        words += f", estimated for the {cores:g} vCPUs of {offer}"
    if offer is None or offer.price is None:
        return words
    price = offer.price * sky_yaml.num_nodes
    return f"{words}, {money(price * seconds / 3600)} at ${price:.2f}/h"


def _store_has(job: Job, text: _Text) -> bool:
    """Return whether the store has all of the job's data, which another run has prepared.

    Only looked up where that is cheap: one part of data, of local text, for a new model. False if
    it can't be found out.
    """
    parts = list(digest_job(job).data)
    local = all(hasattr(source, "path") for _, source in job.sources())
    if len(parts) != 1 or job.base is not None or not local or text.known > HASHED_BYTES:
        return False
    try:
        with tempfile.TemporaryDirectory() as folder:
            fingerprint = _fingerprint(job, parts[0], Path(folder))
        return read_state(open_store(job.store), fingerprint)[0].folder is not None
    except PionError:  # the checks of data, tokenizer and store report it
        return False


class _Found(Exception):
    """Carries the fingerprint out of `prepare`, before anything is prepared."""


def _fingerprint(job: Job, part: str, folder: Path) -> str:
    from pipeline.stages.prepare import prepare_prefer, prepare_pretrain, prepare_sft

    def stop(fingerprint: str) -> None:
        raise _Found(fingerprint)

    try:
        if part == "pretrain":
            prepare_pretrain(job, folder, lambda message: None, find=stop)
        else:
            prepare = prepare_sft if part == "sft" else prepare_prefer
            prepare(job, folder, None, lambda message: None, find=stop)
    except _Found as found:
        return str(found)
    raise AssertionError("prepare did not look for finished data")
