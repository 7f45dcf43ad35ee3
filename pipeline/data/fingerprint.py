"""The fingerprint of prepared data: of all that decides its rows, and of nothing else.

Two jobs whose data has the same fingerprint share it. So paths, names of branches and runs are not
in it, and the bytes of local files, the commits of repositories and the tokenizer's bytes are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pion.errors import BadInput, PionError
from pion.files import sha256_file
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.cleaning.sets import read_sets
from pipeline.data.s3_files import S3File
from pipeline.data.sources import Input, find_input, held_out_by_sft
from pipeline.job import (
    HubDataset,
    HubTexts,
    Job,
    JsonlFiles,
    JsonlTexts,
    ParquetFiles,
    ParquetTexts,
    TextFiles,
)
from pipeline.job.data_section import share_rows
from pipeline.job.digest import conversation_inputs, covered_fields, digest_of
from pipeline.job.stages import data_key
from pipeline.machine.file_hashes import hashed_once

# Raise this when prepare would make other rows from the same content.
FORMAT = 1
# A run shares its data only with runs that have the same value of this variable. `pion prove` sets
# it, so that each of its runs prepares.
APART = "PION_DATA_APART"
# Files in a folder of data that don't decide rows: they follow from the rest.
NOT_CONTENT = ("dataset.json", "choices.jsonl", "commit.json")
# They say where a source is, and its content says the rest.
_WHERE = ("path", "revision")
# Raise this when only texts would make other rows. Before 2, a last paragraph was a document.
# Before 3, line ends of Windows, zero bytes and marks between documents were learned.
TEXT_FORMAT = 3
# Raise this when only records of conversations and preferences would make other rows. Before 2,
# nulls in calls, weights of messages and keys next to the messages were read as they are not meant;
# before 3, texts lost the space around them, and questions of empty answers were kept.
RECORD_FORMAT = 3
# Raise this when the rules of data.clean would leave out other documents.
CLEAN_RULES = 1


def fingerprint_of(
    job: Job, part: str, inputs: Sequence[Input], folder: Path, say: Say, *, trains: bool
) -> str:
    """Return the fingerprint of a part of the job's data: 64 hexadecimal digits.

    `folder` has the tokenizer's files, unless prepare `trains` the tokenizer on these inputs. Local
    inputs are read whole, unless this machine remembers their hashes.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "part": part,
        "seed": job.seed,
        "settings": _settings(job, part),
        "sources": [_of_source(source_input, say) for source_input in inputs],
        "tokenizer": _of_tokenizer(job, folder, trains),
    }
    if part == "pretrain" and job.data.clean is not None:
        content["clean"] = {
            "rules": CLEAN_RULES,
            "sets": [
                [evaluation_set.name, evaluation_set.digest] for evaluation_set in read_sets(job)
            ],
        }
    if share_rows(part, [source_input.source for source_input in inputs]):
        content["weights"] = "rows"
    taught = part == "reinforce" and [
        held_out_by_sft(job, source_input.source) for source_input in inputs
    ]
    if taught and any(taught):
        content["by_sft"] = taught
    if apart := os.environ.get(APART):
        content["apart"] = apart
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_fingerprint(job: Job, part: str, found: Input, folder: Path) -> str:
    """Return what names the rows of one source, whatever its weight and the other sources are: the
    fingerprint of data that has this source only. `folder` has the tokenizer's files."""
    alone = replace(found, source=found.source.model_copy(update={"weight": 1.0}))
    return fingerprint_of(job, part, [alone], folder, lambda message: None, trains=False)


def changed_sources(job: Job, reports: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys and paths of sources whose files are others than those that were prepared.

    `reports` are those of the parts of the data. A source that is gone is not needed any more, so
    it does not count. A file is read only if this machine does not remember its hash.
    """
    for key, source in job.sources():
        section, _, number = key.split(".")
        report = reports.get("pretrain" if section == "data" else section, {})
        before = dict(enumerate(report.get("sources", ()))).get(int(number), {}).get("files")
        with contextlib.suppress(PionError, OSError):
            if before and files_digest(find_input(job, source, key)) != before:
                yield key, source.model_dump()["path"]


def files_digest(found: Input) -> str | None:
    """Return what changes with the local files of a source; None if it has none."""
    files = _content(found, lambda message: None) if found.files else None
    return files and digest_of({"files": files})


def check_unchanged(job: Job, inputs: Sequence[Input]) -> None:
    """Raise BadInput if a local input has changed since it was found: the rows may be of both."""
    for source_input in inputs:
        if (
            source_input.files
            and find_input(job, source_input.source, source_input.key).state != source_input.state
        ):
            raise BadInput(
                f"{source_input.key}: the files have changed while they were prepared. Nothing was "
                "trained. Wait until they are complete, then run the same command again."
            )


def _settings(job: Job, part: str) -> dict[str, Any]:
    if part == "pretrain":
        fields = covered_fields(job.text_settings, "data")
    else:
        fields = conversation_inputs(job, part) | {"data.shard_rows": job.data.shard_rows}
    # The window only decides in which order training reads the rows.
    elsewhere = (f"{data_key(part)}.sources.", "data.window", "data.clean.decontaminate")
    return {path: value for path, value in fields.items() if not path.startswith(elsewhere)}


def _of_source(found: Input, say: Say) -> dict[str, Any]:
    fields = {p: v for p, v in covered_fields(found.source).items() if p not in _WHERE}
    if isinstance(found.source, TextFiles | JsonlTexts | ParquetTexts | HubTexts):
        fields["format"] = TEXT_FORMAT
    if type(found.source) in (JsonlFiles, ParquetFiles, HubDataset):  # others are of plain text
        fields["format"] = RECORD_FORMAT
    return fields | {"content": _content(found, say)}


def _content(found: Input, say: Say) -> Any:
    """Return, of a source, its files in order, each compressed or not, with its hash (in a bucket,
    its ETag), and whether it is held out by its name; or its commit; or the version of Python that
    it comes with."""
    if not found.files:
        return found.state
    total = sum(path.stat().st_size for path in found.files) / 1e6
    read, content = 0.0, []
    with hashed_once() as sha256_of, ThreadPoolExecutor() as pool:

        def version_of(path: Path) -> str:
            return path.etag if isinstance(path, S3File) else sha256_of(path)

        for path, version in zip(found.files, pool.map(version_of, found.files)):
            named = ["held out"] if path in (found.held_out or ()) else []
            content.append([path.suffix == ".gz", version, *named])
            read += path.stat().st_size / 1e6
            say(PrepareProgress(f"read {found.key}", read, "MB", total=total))
    return content


def _of_tokenizer(job: Job, folder: Path, trains: bool) -> dict[str, Any]:
    if trains and job.tokenizer is not None:
        return covered_fields(job.tokenizer, "tokenizer")
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        # A killed process may have left a temporary file.
        if path.is_file() and path.name[0] != "." and path.suffix != ".tmp"
        if path.name not in NOT_CONTENT
    }
