"""Check that the files which a job reads travel to a rented machine, and are found there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pion.errors import BadInput
from pipeline.data.sources import find_input
from pipeline.job import Job
from pipeline.machine.folders import expand
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.of_base import is_pinned
from pipeline.rent.check.row import CheckRow
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.skypilot import quiet, sky_module

# The files in a folder that a run may read: of a model, of a run or of a task.
READ_SUFFIXES = (".safetensors", ".json", ".yaml")


class LocalInput(NamedTuple):
    """A file or folder that the job reads: its key, what the job calls it, and where it is here."""

    key: str
    named: str
    file: Path


def check_files(job: Job, sky_yaml: SkyYaml, path: str | None) -> list[CheckRow]:
    """Check that SkyPilot copies the job file `path`, and the files it names, to the machine."""
    rows = []
    if job.publish is not None and "://" not in job.publish.to:
        words = (
            f"publish.to: {job.publish.to} is a folder, which will be lost with the machine. "
            "Publish to hf://user/name, or fetch the model later: pion export"
        )
        rows.append(CheckRow("publish from there", None, words))
    workdir = sky_yaml.config.get("workdir")
    local = local_inputs(job, prepared=is_prepared(job))
    if path is not None:
        local.append(LocalInput("the job file", "", expand(path).resolve()))
    if not isinstance(workdir, str):
        keys = ", ".join(dict.fromkeys(each.key for each in local))
        words = f"{sky_yaml.path} has no local workdir. Copy these to the machine yourself: {keys}"
        return [*rows, CheckRow("files", None, words)] if local else rows
    root = expand(workdir).resolve()
    if not root.is_dir():
        raise BadInput(f"{sky_yaml.path}: workdir {root} is not a folder")
    left_out = _left_out(root) if local else set()
    for each in local:
        _require_copied(each, job.folder, root, left_out)
    return [*rows, CheckRow("files", True, f"{root} is copied to the machine")]


def _require_copied(local: LocalInput, folder: Path, root: Path, left_out: set[Path]) -> None:
    """Raise BadInput if the machine would not find an input of a job in `folder`.

    The machine gets what is in `root`, except what is `left_out`, in a folder of another name.
    """
    key, named, file = local
    for part in [file, *_parts(file)]:
        if not part.resolve().is_relative_to(root):
            raise BadInput(
                f"{key}: {part} is outside {root}, so it is not copied to the machine. Copy it "
                "into that folder, and name it by its path relative to the job file"
            )
        if not left_out.isdisjoint((part, *part.parents)):
            raise BadInput(
                f"{key}: .skyignore or .gitignore excludes {part}, so it is not copied to the "
                "machine. Move it, or change that file."
            )
    if expand(named).is_absolute():
        raise BadInput(
            f"{key}: {named} is copied to the machine, but into another folder. Name it by its "
            f"path relative to the job file: {os.path.relpath(file, folder)}"
        )


def _parts(path: Path) -> Iterator[Path]:
    """Yield the files in a folder that a run may read."""
    return (file for suffix in READ_SUFFIXES for file in path.rglob(f"*{suffix}"))


def local_inputs(job: Job, *, prepared: bool) -> list[LocalInput]:
    """Return every local file or folder that the job reads.

    If the data is `prepared`, the store has it and its tokenizer, so they are left out. So is a
    model to start from that the run has recorded.
    """
    asked: dict[str, str | None] = {
        f"evaluate.packs.{n}": pack for n, pack in enumerate(job.evaluate.packs)
    }
    asked["evaluate.text"] = job.evaluate.text
    asked["evaluate.lm_eval.include_path"] = job.evaluate.lm_eval.include_path
    for stage in job.train_stages:
        weights = job.section(stage).init_from
        if weights is not None and job.input_path(weights).exists():
            asked[f"{stage}.init_from"] = weights
    base = job.base
    if base is not None and job.input_path(base.source).exists() and not is_pinned(job, base):
        asked["model.from"] = base.source
    if not prepared and job.tokenizer is not None:
        asked["tokenizer.file"] = job.tokenizer.file
    found = [
        LocalInput(key, path, job.input_path(path))
        for key, path in asked.items()
        if path is not None
    ]
    for key, source in job.sources():
        if not prepared and hasattr(source, "path"):
            with contextlib.suppress(BadInput):  # `check_data` reports it
                files = find_input(job, source, key).files
                found += [LocalInput(f"{key}.path", source.path, path.resolve()) for path in files]
    return found


def _left_out(root: Path) -> set[Path]:
    """Return what SkyPilot does not copy, as its own code reads .skyignore or .gitignore."""
    sky_module()
    from sky.data.storage_utils import get_excluded_files

    with quiet():
        return {root / path for path in get_excluded_files(str(root))}
