"""The tokenizer of a run: one that the job names, one trained on its text, or that of `model.from`.

It lies next to prepared data, with its chat format. Training, evaluation, samples and checkpoints
read both there: see `pion.data.chat.chat_format`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pion.data.chat.conversation import chat_template
from pion.data.chat.template_source import (
    DATE_FILE,
    TEMPLATE_FILE,
    find_template,
    with_settings,
    write_template_date,
)
from pion.data.tokens.special_tokens import GENERATION_CONFIG
from pion.data.tokens.token_names import FILES as NAMES_FILES
from pion.data.tokens.tokenizer import MORE_ROWS, Tokenizer, train_bpe
from pion.errors import BadInput, told
from pion.formats.gguf.vocabulary import require_known
from pion.formats.huggingface.tokenizer_files import copy_tokenizer
from pion.untrusted import LARGEST_TOKENIZER, read_file
from pipeline.console.messages import Note, PrepareProgress, Say
from pipeline.data.hub import hub_tokenizer
from pipeline.data.sources import Input, Keep, texts
from pipeline.job import BinShards, HubNpyShards, Job, NpyShards
from pipeline.job.mixes import source_names
from pipeline.job.model_section import TrainTokenizer
from pipeline.machine.time_limit import attended

# What a checkpoint needs of the folder. Other files of a tokenizer repeat what tokenizer.json has.
NEEDED = ("tokenizer.json", *NAMES_FILES, GENERATION_CONFIG, TEMPLATE_FILE, DATE_FILE)


def bring_tokenizer(job: Job, source: Path, folder: Path, *, conversations: bool) -> Tokenizer:
    """Copy the tokenizer of `job.base` from the folder `source`; return it.

    For `conversations`, the folder gets the chat template that they are written in. Raises
    BadInput for files that can't be used, and OSError if the folder can't be written.
    """
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    copy_tokenizer(
        source, folder, template=_template(job, source, tokenizer) if conversations else None
    )
    if (source / GENERATION_CONFIG).is_file():
        shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    if conversations and job.uses_model_template and job.base and job.base.date:
        write_template_date(folder, job.base.date)
    return tokenizer


def _template(job: Job, source: Path, tokenizer: Tokenizer) -> str | None:
    """Return the template of conversations; None if it is the model's own as it is."""
    assert job.template_stage is not None
    section = job.conversations(job.template_stage)
    if not job.uses_model_template:
        return chat_template(tokenizer)
    template = find_template(source)
    assert template is not None  # the base has one
    with_system = with_settings(
        template, section.system, section.template_options, tokenizer.specials
    )
    return None if with_system == template else with_system


def needed_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the files that a checkpoint needs to be talked to, by name.

    Raises BadInput for a file that is too large, and OSError if one can't be read.
    """
    return {
        name: read_file(folder / name, LARGEST_TOKENIZER)
        for name in NEEDED
        if (folder / name).is_file()
    }


def put_tokenizer(job: Job, folder: Path, given: Path | None, *, conversations: bool) -> None:
    """Put the given tokenizer, or else the job's, into the folder, unless it is to be trained.

    That of a model to start from comes with its files, and for `conversations` with their template.
    """
    path = folder / "tokenizer.json"
    if given is not None and job.base is not None:
        bring_tokenizer(job, given.parent, folder, conversations=conversations)
    elif given is not None:
        Tokenizer.from_file(given).save(path)
    elif not (path.exists() and job.tokenizer is not None and job.tokenizer.hub) and (
        named := named_tokenizer(job)
    ):
        Tokenizer.from_file(named).save(path)


def named_tokenizer(job: Job) -> Path | None:
    """Return the tokenizer.json that the job names, from the Hub if need be; None without one."""
    section = job.tokenizer
    if section is not None and section.file is not None:
        return job.kept_path(section.file)
    if section is not None and section.hub is not None:
        return hub_tokenizer(section.hub, section.revision, section.hub_file)
    return None


def check_fits(job: Job, tokenizer: Tokenizer, path: Path, by_job: bool) -> None:
    """Raise BadInput before training if a tokenizer that the job names (`by_job`) doesn't fit the
    model, or if publish.gguf can't have the tokenizer at `path`."""
    if by_job:
        rows = job.model_config_resolved().vocab_size
        tokenizer.fits(rows, f"tokenizer: {origin(job)}", MORE_ROWS)
    if job.publish is None or not job.publish.gguf:
        return
    after = ". Nothing was trained. Remove publish.gguf, or name another tokenizer."
    with told("publish.gguf: ", after):
        require_known(path)


def ready_tokenizer(
    job: Job, inputs: list[Input], folder: Path, *, by_job: bool, say: Say, keep: Keep | None
) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer in the folder; train it on the documents to `keep` (None: on all) if the
    job says so.

    Raises BadInput if one that the job names doesn't fit the model.
    """
    path, started = folder / "tokenizer.json", time.monotonic()
    train = job.tokenizer.train if by_job and job.tokenizer is not None else None
    if train is not None and not path.exists():
        say(Note(f"training a BPE of {train.vocab_size:,} entries"))
        _trained(job, inputs, train, say, keep).save(path)
    tokenizer = Tokenizer.from_file(path)
    check_fits(job, tokenizer, path, by_job)
    if train is not None:
        rows = job.model_config_resolved().vocab_size
        got = tokenizer.vocab_size
        unused = f"; {rows - got:,} of the model's {rows:,} embedding rows are unused"
        message = f"vocabulary: {train.vocab_size:,} entries asked for, {got:,} found in the text"
        say(Note(message + (unused if got < rows else "")))
    if not by_job:
        return tokenizer, {"vocab_size": tokenizer.vocab_size}
    report = {"tokenizer": origin(job), "vocab_size": tokenizer.vocab_size}
    return tokenizer, report | {"tokenizer_seconds": round(time.monotonic() - started, 1)}


def origin(job: Job) -> str:
    """Return where the job takes its tokenizer from."""
    assert job.tokenizer is not None
    if job.tokenizer.train is not None:
        return "trained on data.sources"
    return job.tokenizer.file or f"{job.tokenizer.hub}/{job.tokenizer.hub_file}"


def _trained(
    job: Job, inputs: list[Input], train: TrainTokenizer, say: Say, keep: Keep | None
) -> Tokenizer:
    """Return a tokenizer trained on the inputs. A stop is heard meanwhile: `say` raises it."""
    read, started = _Read(), time.monotonic()

    def look() -> None:
        if read.complete:
            say(PrepareProgress("learn the vocabulary", time.monotonic() - started, "s"))
        else:
            say(PrepareProgress("read text for the tokenizer", read.bytes / 1e6, "MB"))

    texts_read = _training_texts(job, inputs, train.max_mb, read, keep)
    return attended(partial(train_bpe, texts_read, train.vocab_size), look)


@dataclass
class _Read:
    """How much text the tokenizer's training has read, and whether that is all."""

    bytes: int = 0
    complete: bool = False


def _training_texts(
    job: Job, inputs: list[Input], max_mb: float, progress: _Read, keep: Keep | None
) -> Iterator[str]:
    """Yield training documents to learn merges from, the same amount from every source."""
    tokenized = NpyShards | BinShards | HubNpyShards
    names = zip(source_names(job.data), inputs, strict=True)
    readable = [
        (n, source_input)
        for n, (name, source_input) in enumerate(names)
        if not isinstance(source_input.source, tokenized) and name in job.tokenizer_sources
    ]
    if not readable:
        raise BadInput(
            "tokenizer.train: every data source is already tokenized, so there is no text to train "
            "on. Set tokenizer.file or tokenizer.hub to the tokenizer of these sources"
        )
    share = max_mb * 1e6 / len(readable)
    for number, source_input in readable:
        before = progress.bytes
        for held_out, text in texts(job, source_input, kept=keep and keep(number)):
            if held_out:
                continue
            yield text
            progress.bytes += len(text.encode())
            if progress.bytes - before >= share:
                break
    progress.complete = True
