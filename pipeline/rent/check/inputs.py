"""Check that the machine of the run can read what the job names: the model that the run starts from
(`model.from`), and files that travel to a rented machine."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pion.errors import BadInput, told
from pion.files import expand
from pipeline.base.keep import is_pinned
from pipeline.console.formats import size
from pipeline.data.hub import OnHub, explained
from pipeline.data.sources import find_input
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.machine.own_files import file_meant, is_own
from pipeline.models.find import Listed, locate_model
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared
from pipeline.rent.check.scripts import refuse_missing_script
from pipeline.rent.credentials import names_given, wanted_secrets
from pipeline.rent.own_code import brings_code
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.skypilot import quiet, sky_module
from pipeline.state.stores import FileStore

# The files in a folder that a run may read: of a model, of a run or of a task.
READ_SUFFIXES = (".safetensors", ".json", ".jsonl", ".yaml", ".csv")
# Of a folder with more bytes, the largest part is named.
MANY_BYTES = 100_000_000


# ---------------------------------------------------------------- the model to start from


def check_base(
    job: Job, sky_yaml: SkyYaml | None, environment: Mapping[str, str] = os.environ
) -> list[CheckRow]:
    """Check that the machine of the run can read the model that the run starts from.

    Once the run has recorded the model, its store has it, and nobody asks its source again.
    """
    base = job.base
    if base is None:
        return []
    note = base.note and f"; {base.note}"
    if is_pinned(job, base):
        return [CheckRow("model.from", True, f"{base}: in the run's store{note}")]
    if sky_yaml is not None and base.commit is None:
        found = locate_model(job.model_name(base.source))
        here = isinstance(found, Path) or (
            isinstance(found, Listed) and isinstance(found.state.store, FileStore)
        )
        # A path relative to the job file may be copied with it; `check_files` finds out.
        if here and not job.input_path(base.source).exists():
            raise BadInput(
                f"model.from: {base.source} is on this machine only. Use a run in a store that "
                "both machines can read (s3://bucket/prefix/run), a Hub repository (user/name), or "
                "a folder inside the rental's workdir, as a path relative to the job file."
            )
    if sky_yaml is None or base.commit is None:
        return [CheckRow("model.from", True, f"{base}{note}")]
    repo = base.source.removeprefix("hf://").partition("@")[0]
    given = names_given(sky_yaml.secrets, wanted_secrets(job, environment), environment)
    has_token = "HF_TOKEN" in given
    token = (sky_yaml.secrets["HF_TOKEN"] or environment["HF_TOKEN"]) if has_token else None
    _require_access(repo, base, token)
    words = "with the token that the rental gets" if token else "without a token"
    return [CheckRow("model.from", True, f"{base}: can be read {words}{note}")]


def _require_access(repo: str, base: Base, token: str | None) -> None:
    """Raise BadInput if a repository can't be read with the rental's token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    where = OnHub(repo, base.commit, "model", "config.json")
    with told(after=" Nothing was rented."), explained(where):
        try:
            HfApi().auth_check(repo, token=token or False)
        except GatedRepoError:
            raise BadInput(_gated(repo, token)) from None


def _gated(repo: str, token: str | None) -> str:
    page = OnHub(repo, repo_type="model").page
    if token is None:
        return (
            f"model.from {repo} is gated, and the rental would have no Hub token: accept its terms "
            f"on {page}, then export HF_TOKEN=hf_…, and declare HF_TOKEN under `secrets:`."
        )
    return (
        f"model.from {repo} is gated, and the HF_TOKEN that the rental would get has no access: "
        f"accept its terms on {page} with that token's account, or use another token."
    )


# ---------------------------------------------------------------- files


class LocalInput(NamedTuple):
    """A file or folder that the job reads: its key, what the job calls it, and where it is here."""

    key: str
    named: str
    file: Path


def check_files(job: Job, sky_yaml: SkyYaml, path: str | None) -> Iterator[CheckRow]:
    """Check that SkyPilot copies the job file `path`, and the files it names, to the machine."""
    if job.publish is not None and "://" not in job.publish.to:
        words = (
            f"publish.to: {job.publish.to} is a folder, which will be lost with the machine. "
            "Publish to hf://user/name, or fetch the model later: pion export"
        )
        yield CheckRow("publish from there", None, words)
    workdir = sky_yaml.config.get("workdir")
    local = local_inputs(job, prepared=is_prepared(job))
    if path is not None:
        file = file_meant(expand(path), "jobs").resolve()
        local.append(LocalInput("the job file", "", file))
    if not isinstance(workdir, str):
        keys = ", ".join(dict.fromkeys(each.key for each in local))
        words = f"{sky_yaml.path} has no local workdir. Copy these to the machine yourself: {keys}"
        yield from [CheckRow("files", None, words)] if local else []
        return
    root = expand(workdir).resolve()
    if not root.is_dir():
        raise BadInput(f"{sky_yaml.path}: workdir {root} is not a folder")
    left_out = _left_out(root)
    refuse_missing_script(sky_yaml, root, left_out)
    has_pion = brings_code(sky_yaml.config)
    for each in local:
        if not (has_pion and is_own(each.file)):
            _require_copied(each, job.folder, root, left_out)
    parts = _copied_bytes(root, left_out)
    words = f"{size(parts.total())} of {root} is copied to the machine"
    words += ", and Pion next to it" if has_pion else ""
    if parts.total() > MANY_BYTES:
        words += (
            f". The largest part is {parts.most_common(1)[0][0]}. A file .skyignore, read in place "
            "of .gitignore, can leave parts out"
        )
    if not sky_yaml.path.exists():
        words += f". To change {sky_yaml.path}: pion init {sky_yaml.path.stem}"
    yield CheckRow("files", True, words)


def _copied_bytes(root: Path, left_out: set[Path]) -> Counter[str]:
    """Return how many bytes are copied of each file and folder in `root`."""
    found = Counter[str]()
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in left_out]
        for file in {Path(folder, name) for name in files} - left_out:
            with contextlib.suppress(OSError):  # a run may write here meanwhile
                found[file.relative_to(root).parts[0]] += file.lstat().st_size
    return found


def _require_copied(local: LocalInput, folder: Path, root: Path, left_out: set[Path]) -> None:
    """Raise BadInput if the machine would not find an input of a job in `folder`.

    The machine gets what is in `root`, except what is `left_out`, in a folder of another name.
    """
    key, named, file = local
    parts = (part for suffix in READ_SUFFIXES for part in file.rglob(f"*{suffix}"))
    for part in [file, *parts]:
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


def local_inputs(job: Job, *, prepared: bool) -> list[LocalInput]:
    """Return every local file or folder that the job reads.

    If the data is `prepared`, the store has it and its tokenizer, so they are left out. So are
    inputs that the run has kept, and a model to start from that it has recorded.
    """
    asked = {
        key: path
        for key, (stage, path) in job.kept_inputs.items()
        if job.kept_path(path) == job.input_path(path) and not (prepared and stage == "prepare")
    }
    base = job.base
    if base is not None and job.input_path(base.source).exists() and not is_pinned(job, base):
        asked["model.from"] = base.source
    found = [LocalInput(key, path, job.input_path(path)) for key, path in asked.items()]
    for key, source in job.sources():
        if not prepared and hasattr(source, "path"):
            with contextlib.suppress(BadInput):  # `check_data` reports it
                found += [
                    LocalInput(f"{key}.path", source.path, path.resolve())
                    for path in find_input(job, source, key).files
                ]
    return found


def _left_out(root: Path) -> set[Path]:
    """Return what SkyPilot does not copy, as its own code reads .skyignore or .gitignore."""
    sky_module()
    from sky.data.storage_utils import get_excluded_files

    with quiet():
        return {root / path for path in get_excluded_files(str(root))}
