"""The files that a run was started with, in its store by their hashes: later stages read these.

The job names them by paths, and `inputs/files.json` says what each path means for the run. Sources
of data are not among them: the store has their rows.
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import cache
from pathlib import Path

from pion.data.documents.find_files import JSONL_SUFFIXES, TEXT_SUFFIXES, find_files
from pion.errors import BadInput, PionError
from pion.files import make_folder, sha256_file
from pion.untrusted import open_file
from pipeline.job import STAGES, Job
from pipeline.job.digest import digest_of
from pipeline.job.stages import TRAINING
from pipeline.machine.file_hashes import hashed_once
from pipeline.machine.folders import private_cache_folder
from pipeline.state.record_json import to_json
from pipeline.state.run_state import INPUTS, Content, RunState
from pipeline.state.stores import Missing, open_store

# What counts of a folder: texts, questions, and tasks of lm-eval with their functions.
SUFFIXES = (".yaml", ".yml", ".py", ".csv", ".json", *TEXT_SUFFIXES, *JSONL_SUFFIXES)


def use_kept_inputs(job: Job, redo: str | None = None, run: RunState | None = None) -> None:
    """Let `job` read what its run has kept of its inputs, as soon as it needs one.

    The files here count in their place for stages from `redo` on; and for those that train, unless
    the `run` is given, because this start has begun: until then, the stage's digest says whether
    they have changed. A file that is gone is read from the store in any case.
    """
    redone = STAGES[STAGES.index(redo) :] if redo in STAGES else ()
    again = redone if run else (*TRAINING, *redone)
    fresh = {path for stage, path in job.kept_inputs.values() if stage in again}
    opened = cache(lambda: run or RunState(open_store(job.store), job.name))

    @cache
    def kept(path: str) -> Path | None:
        local = job.input_path(path)
        if path in fresh and content_of(local):
            return None
        content = opened().read_inputs().get(path)
        return None if content is None else _bring(opened(), content) / local.name

    job._kept = kept


def keep_inputs(job: Job, run: RunState) -> None:
    """Keep in the store what the run does not have of the job's inputs, and let `job` read it there
    from now on. Who calls this owns the run.

    Raises OSError, and StoreError; then it may be called again.
    """
    inputs = dict(run.read_inputs())
    for _, path in job.kept_inputs.values():
        local = job.input_path(path)
        content = content_of(local) if job.kept_path(path) == local else {}
        if content and content != inputs.get(path):
            inputs[path] = {name: _keep(run, local.parent / name) for name in content}
            run.store.write(run.key(INPUTS), to_json({"inputs": inputs}).encode())
    run.store.flush()  # other processes read it
    use_kept_inputs(job, run=run)


def content_of(path: Path) -> Content:
    """Return the files that a path of the job means; nothing if it is gone, or has wildcards in the
    name of a folder."""
    with contextlib.suppress(BadInput, OSError, ValueError), hashed_once() as sha256_of:
        files, _ = find_files(path, SUFFIXES, str(path))
        return {file.relative_to(path.parent).as_posix(): sha256_of(file) for file in files}
    return {}


def _keep(run: RunState, file: Path) -> str:
    """Read a file once, put it into the store, and return its sha256."""
    with open_file(file) as opened:
        data = opened.read()
    sha256 = hashlib.sha256(data).hexdigest()
    run.store.write(run.key(f"inputs/{sha256}"), data)
    return sha256


def _bring(run: RunState, content: Content) -> Path:
    """Return a folder of this machine with these files. Raises PionError if the store's copy is
    missing or damaged."""
    folder = private_cache_folder("inputs") / digest_of(dict(content))
    for name, sha256 in content.items():
        path, key = folder / name, run.key(f"inputs/{sha256}")
        make_folder(path.parent)
        if path.is_file() and sha256_file(path) == sha256:
            continue
        with contextlib.suppress(Missing):
            if run.store.download(key, path) == sha256:
                continue
        raise PionError(
            f"{run.store.url}/{key} is missing or damaged. It is {name}, as this run was started "
            "with it. Nothing was changed. Put the file back there, or let the run use the file as "
            "it is now: --redo of the stage that reads it."
        )
    return folder
