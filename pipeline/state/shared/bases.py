"""The models that runs start from (`model.from`), in a store: their files, and which one a run has.

The files of a base are below `_bases/<hash>/`, once in a store for all its runs, with a list of
them that is written last. They are named by their content and never change. Nothing deletes them.

A run's pin, `bases/<digest of the name>.json`, says which base a name in the job means for this
run. So a branch that moves, or a folder that changes, does not change the run.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from pion.errors import BadInput, PionError
from pipeline.job.model_section import Base
from pipeline.machine.file_hashes import file_problem
from pipeline.state.record_file import RecordFile
from pipeline.state.record_json import Damaged, build, damaged, open_record, parse
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.local import replacing
from pipeline.state.workspace import FILES, Files, Progress, Workspace, manifest_of

BASES = "_bases"
# The files that results depend on. The others are kept for the model card.
WEIGHTS = (".safetensors", ".safetensors.index.json")
DECIDE_IDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SETTINGS = ("config.json", "generation_config.json", "chat_template.jinja")


def hash_of(files: Files) -> str:
    """Return the name of files by their names and contents."""
    listed = "".join(f"{name} {sha256}\n" for name, (_, sha256) in sorted(files.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def decides_results(name: str) -> bool:
    """Return whether results depend on a file of a base."""
    return name in DECIDE_IDS + SETTINGS or name.endswith(WEIGHTS)


# ---------------------------------------------------------------- which base a run has


def read_pin(run: RunState, source: str) -> Base | None:
    """Return the base that `source` means for this run; None if the run has none yet.

    Raises `Damaged`.
    """
    return _pin(run, source).read()[0]


def write_pin(run: RunState, base: Base, *, replace: bool = False) -> None:
    """Record which base its name means for this run; with `replace`, from now on.

    Raises BadInput if another process has just recorded a different one.
    """

    def pinned(present: Base | None) -> Base:
        return base if present is None or (replace and present.hash != base.hash) else present

    pinned_base = _pin(run, base.source).change(pinned, None)
    if pinned_base.hash != base.hash:
        raise BadInput(
            f"model.from: another start of run {run.name} has just begun with {pinned_base}, and "
            f"this one found {base}. Nothing was started. Run the same command again"
        )


def _pin(run: RunState, source: str) -> RecordFile[Base]:
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return RecordFile(run.store, run.key(f"bases/{digest}.json"), _base)


def _base(data: bytes, where: str) -> Base:
    return build(open_record(Base), parse(data, where), where)


# ---------------------------------------------------------------- the files


def keep_base(
    store: Store,
    base_hash: str,
    files: Files,
    bring: Callable[[str], Path],
    progress: Progress = lambda done, total: None,
) -> None:
    """Put the files of a base into the store, unless it has them. Their list is written last.

    `bring` returns where a file is on this machine. After an interruption, another call resumes.
    Raises BadInput if a file is not what `files` says.
    """
    if _listed(store, base_hash) is not None:
        return
    workspace = Workspace(store, BASES)
    folder = workspace.folder(base_hash)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, sha256) in files.items():
        if file_problem(folder, name, size, sha256) is not None:
            with replacing(folder / name) as copy:
                # Not a link: its owner may change the file in place.
                shutil.copyfile(bring(name), copy)
        problem = file_problem(folder, name, size, sha256)
        if problem is not None:
            (folder / name).unlink(missing_ok=True)
            raise BadInput(
                f"model.from: {problem}. The file has just changed, or the disk is failing. "
                "Nothing was started. Run the same command again"
            )
    if workspace.remote:
        workspace.keep(base_hash, progress)
    else:
        store.write(f"{BASES}/{base_hash}/{FILES}", manifest_of(files))


def bring_base(store: Store, base_hash: str, *, weights: bool = True) -> Path:
    """Return the folder with the files of a base, downloaded unless this machine has them.

    Raises PionError if the store's copy is missing or damaged.
    """
    workspace = Workspace(store, BASES)
    try:
        files = _listed(store, base_hash)
        problem = "it is missing" if files is None else None
    except Damaged as error:
        files, problem = None, str(error)
    if files is not None:
        wanted = {n: about for n, about in files.items() if weights or not n.endswith(WEIGHTS)}
        problem = workspace.fetch(base_hash, wanted, once=True)
    if problem is not None:
        key = f"{BASES}/{base_hash}"
        raise PionError(
            f"The model that this run starts from, {store.url}/{key}, can't be used: {problem}. "
            f"Nothing was changed. If its source still has this content, delete {key}/{FILES} in "
            "the store, and run the same command again with --redo of the run's first stage."
        )
    return workspace.folder(base_hash)


def _listed(store: Store, base_hash: str) -> Files | None:
    """Return the files of a base in the store; None if they are not complete there. Raises
    `Damaged` for a list of other files than those that the hash names."""
    try:
        files = Workspace(store, BASES).listed(base_hash, FILES)
    except Missing:
        return None
    if hash_of({n: about for n, about in files.items() if decides_results(n)}) != base_hash:
        raise damaged(f"{store.url}/{BASES}/{base_hash}/{FILES}", "it lists other files")
    return files


def copy_bases(source: RunState, target: RunState) -> None:
    """Give a fork the models that its source started from, and what their names mean."""
    for entry in source.store.list(source.key("bases/")):
        if not entry.key.endswith(".json"):
            continue
        base = _base(source.store.read(entry.key), f"{source.store.url}/{entry.key}")
        files = _listed(source.store, base.hash)
        if files is not None and source.store.url != target.store.url:
            bring = bring_base(source.store, base.hash).joinpath
            keep_base(target.store, base.hash, files, bring)
        write_pin(target, base, replace=True)
