"""The files that a run was started with, in its store by their hashes: later stages read these.

The job names them by paths. `inputs/files.json` says which content each path means for this run.
The sources of data are not among them: the store has their rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from glob import has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Predicate

from pion.data.documents.find_files import JSONL_SUFFIXES, TEXT_SUFFIXES, find_files
from pion.errors import BadInput, PionError
from pion.files import make_folder, sha256_file
from pipeline.job import STAGES, Job
from pipeline.job.digest import digest_of
from pipeline.machine.file_hashes import hashed_once
from pipeline.machine.folders import private_cache_folder
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import FORMAT, Count, Sha256, closed_record
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing, open_store

# Below the run, and below this machine's cache folder.
FOLDER = "inputs"
# What counts of a folder: texts, questions, and tasks of lm-eval with their functions.
SUFFIXES = (".yaml", ".yml", ".py", ".csv", ".json", *TEXT_SUFFIXES, *JSONL_SUFFIXES)
# The stages that read an input first, by the section that names it. Others are stages themselves.
_STAGES = {"data": "prepare", "tokenizer": "prepare"}


def _stays_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@dataclass(frozen=True)
class KeptFile:
    """Size and hash of a file."""

    bytes: Count
    sha256: Sha256


# The files that a path means, by their names below the folder that the path is in.
Content = Mapping[Annotated[str, Predicate(_stays_below)], KeptFile]


@closed_record
@dataclass(frozen=True)
class KeptInputs:
    """What paths of the job mean for a run."""

    inputs: Mapping[str, Content] = field(default_factory=dict)
    format: int = FORMAT


def use_kept_inputs(job: Job, redo: str | None = None, *, begun: bool = False) -> None:
    """Let `job` read what its run has kept of its inputs, as soon as it needs one.

    Files here count in their place where `redo` asks for it, and before the run has `begun` also of
    rewards: the digest of `reinforce` says whether these have changed. A file that is gone is read
    from the store in any case.
    """
    redone = STAGES[STAGES.index(redo) :] if redo in STAGES else []
    asked = (*redone, *([] if begun else ["reinforce"]))
    fresh = {path for key, path in job.kept_inputs.items() if stage_of(key) in asked}
    run = cache(lambda: RunState(open_store(job.store), job.name))
    record = cache(lambda: _record(run()).read()[0] or KeptInputs())

    @cache
    def kept(path: str) -> Path | None:
        own = job.input_path(path)
        if (path in fresh and content_of(own, path)) or path not in record().inputs:
            return None
        return _bring(run(), record().inputs[path]) / own.relative_to(_root(own))

    job._kept = kept


def keep_inputs(job: Job, run: RunState) -> None:
    """Keep in the store what the run does not have of the job's inputs, and let `job` read it there
    from now on. Who calls this owns the run.

    Raises BadInput for a file that changes meanwhile, and StoreError; then it may be called again.
    """
    before, new = _record(run).read()[0] or KeptInputs(), dict[str, Content]()
    for key, path in job.kept_inputs.items():
        own = job.input_path(path)
        content = content_of(own, key) if job.kept_path(path) == own else {}
        if content and content != before.inputs.get(path):
            for name, file in content.items():
                run.store.write(run.key(f"{FOLDER}/{file.sha256}"), _root(own) / name)
            new[path] = content
            try:
                _bring(run, content)
            except PionError:
                raise BadInput(
                    f"{key}: {own} has changed while this command started. Nothing was started. "
                    "Run the same command again"
                ) from None
    if new:
        _record(run).change(lambda there: KeptInputs({**there.inputs, **new}), KeptInputs())
    use_kept_inputs(job, begun=True)


def changed_kept_inputs(job: Job, run: RunState) -> Iterator[tuple[str, str]]:
    """Yield the keys and paths of inputs that are here with other content than the run has kept."""
    record = (_record(run).read()[0] if job.kept_inputs else None) or KeptInputs()
    for key, path in job.kept_inputs.items():
        now = content_of(job.input_path(path), key) if path in record.inputs else {}
        if now and now != record.inputs[path]:
            yield key, path


def stage_of(key: str) -> str:
    """Return the first stage that reads the input with this key of the job."""
    section = key.partition(".")[0]
    return _STAGES.get(section, section)


def content_of(path: Path, key: str) -> Content:
    """Return the files that a path of the job means; nothing if it is gone."""
    with contextlib.suppress(BadInput, OSError), hashed_once() as sha256_of:
        files, _ = find_files(path, SUFFIXES, key)
        return {
            file.relative_to(_root(path)).as_posix(): KeptFile(file.stat().st_size, sha256_of(file))
            for file in files
        }
    return {}


def name_of(content: Content) -> str:
    """Return the digits that name content."""
    return digest_of({name: asdict(file) for name, file in content.items()})


def _root(path: Path) -> Path:
    """Return the folder that a file or a folder is in, or the one before the wildcards."""
    return Path(*takewhile(lambda part: not has_magic(part), path.parts)).parent


def _bring(run: RunState, content: Content) -> Path:
    """Return a folder of this machine with these files. Raises PionError if the store's copy is
    missing or damaged."""
    place = private_cache_folder(FOLDER) / name_of(content)
    for name, file in content.items():
        path, key = place / name, run.key(f"{FOLDER}/{file.sha256}")
        make_folder(path.parent)
        if path.is_file() and sha256_file(path) == file.sha256:
            continue
        try:
            problem = "is damaged"
            if run.store.download(key, path, limit=file.bytes) == file.sha256:
                continue
        except Missing:
            problem = "is missing"
        raise PionError(
            f"{run.store.url}/{key} {problem}. It is {name}, as this run was started with it. "
            "Nothing was changed. Put the file back there, or let the run use the file as it is "
            "now: --redo of the stage that reads it."
        )
    return place


def _record(run: RunState) -> RecordFile[KeptInputs]:
    return RecordFile(run.store, run.key(f"{FOLDER}/files.json"), strictly(KeptInputs))
