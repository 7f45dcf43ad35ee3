"""Check that the machine of the run can read what the job names: the model that the run starts from
(`model.from`), and files that travel to a rented machine, the scripts that it starts among them."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pion.errors import BadInput, PionError, told
from pion.files import expand
from pion.untrusted import FarFile
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
from pipeline.rent.credentials import names_given, wanted_secrets
from pipeline.rent.own_code import BOOT, brings_code
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.skypilot import quiet, sky_module
from pipeline.state.stores import FileStore

# The files in a folder that a run may read: of a model, of a run or of a task.
READ_SUFFIXES = (".safetensors", ".json", ".jsonl", ".yaml", ".csv")


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
    how = ""
    if is_pinned(job, base):
        how = ": in the run's store"
    elif sky_yaml is not None and base.commit is not None:
        how = _access_of_rental(job, base, base.commit, sky_yaml, environment)
    elif sky_yaml is not None:
        _refuse_elsewhere(job, base)
    return [CheckRow("model.from", True, f"{base}{how}{base.note and f'; {base.note}'}")]


def _refuse_elsewhere(job: Job, base: Base) -> None:
    """Raise BadInput for a model that only this machine has. A path relative to the job file may be
    copied with it; `check_files` finds out."""
    model = locate_model(job.model_name(base.source))
    here = isinstance(model, Path) or (
        isinstance(model, Listed) and isinstance(model.state.store, FileStore)
    )
    if here and not job.input_path(base.source).exists():
        raise BadInput(
            f"model.from: {base.source} is on this machine only. Use a run in a store that "
            "both machines can read (s3://bucket/prefix/run), a Hub repository (user/name), or "
            "a folder inside the rental's workdir, as a path relative to the job file."
        )


def _access_of_rental(
    job: Job, base: Base, commit: str, sky_yaml: SkyYaml, environment: Mapping[str, str]
) -> str:
    """Say with which token the rental can read a model of the Hub. Raises BadInput if it can't."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    repo = base.source.removeprefix("hf://").partition("@")[0]
    names_passed = names_given(sky_yaml.secrets, wanted_secrets(job, environment), environment)
    token = None
    if "HF_TOKEN" in names_passed:
        token = sky_yaml.secrets["HF_TOKEN"] or environment["HF_TOKEN"]
    hub = OnHub(repo, commit, "model", "config.json")
    with told(after=" Nothing was rented."), explained(hub):
        try:
            HfApi().auth_check(repo, token=token or False)
        except GatedRepoError:
            terms = f"accept its terms on {OnHub(repo, repo_type='model').page}"
            why = (
                f"the rental would have no Hub token: {terms}, then export HF_TOKEN=hf_…, and "
                "declare HF_TOKEN under `secrets:`."
                if token is None
                else f"the HF_TOKEN that the rental would get has no access: {terms} with that "
                "token's account, or use another token."
            )
            raise BadInput(f"model.from {repo} is gated, and {why}") from None
    return f": can be read {'with the token that the rental gets' if token else 'without a token'}"


# ---------------------------------------------------------------- files


class LocalInput(NamedTuple):
    """A file or folder that the job reads: its key, what the job calls it, and where it is here."""

    key: str
    named: str
    file: Path


def check_files(job: Job, sky_yaml: SkyYaml, path: str | None) -> Iterator[CheckRow]:
    """Check that SkyPilot copies the job file `path`, and the files it names, to the machine."""
    if job.publish is not None and "://" not in job.publish.to:
        sentence = (
            f"publish.to: {job.publish.to} is a folder, which will be lost with the machine. "
            "Publish to hf://user/name, or fetch the model later: pion export"
        )
        yield CheckRow("publish from there", None, sentence)
    workdir = sky_yaml.config.get("workdir")
    every = local_inputs(job, prepared=is_prepared(job))
    local = [each for each in every if not isinstance(each.file, FarFile)]
    if path is not None:
        file = file_meant(expand(path), "jobs").resolve()
        local.append(LocalInput("the job file", "", file))
    if not isinstance(workdir, str):
        keys = ", ".join(dict.fromkeys(each.key for each in local))
        sentence = (
            f"{sky_yaml.path} has no local workdir. Copy these to the machine yourself: {keys}"
        )
        yield from [CheckRow("files", None, sentence)] if local else []
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
    yield CheckRow("files", True, _copied_in_words(sky_yaml, root, left_out, has_pion=has_pion))


def _copied_in_words(sky_yaml: SkyYaml, root: Path, left_out: set[Path], *, has_pion: bool) -> str:
    """Say how much of `root` is copied, which part is the largest, and what leaves parts out."""
    parts = Counter[str]()
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in left_out]
        for file in {Path(folder, name) for name in files} - left_out:
            with contextlib.suppress(OSError):  # a run may write here meanwhile
                parts[file.relative_to(root).parts[0]] += file.lstat().st_size
    sentence = f"{size(parts.total())} of {root} is copied to the machine"
    sentence += ", and Pion next to it" if has_pion else ""
    for name, most in parts.most_common(1):
        sentence += (
            f". The largest part is {name} ({size(most)}). What .skyignore names is left out, or "
            "without that file what .gitignore names"
        )
    if not sky_yaml.path.exists():
        sentence += f". To change {sky_yaml.path}: pion init {sky_yaml.path.stem}"
    return sentence


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
    """Return every local file or folder that the job reads, and the files of sources in buckets.

    If the data is `prepared`, the store has it and its tokenizer, so they are left out. So are
    inputs that the run has kept, and a model to start from that it has recorded.
    """
    paths = {
        key: path
        for key, (stage, path) in job.kept_inputs.items()
        if job.kept_path(path) == job.input_path(path) and not (prepared and stage == "prepare")
    }
    base = job.base
    if base is not None and job.input_path(base.source).exists() and not is_pinned(job, base):
        paths["model.from"] = base.source
    inputs = [LocalInput(key, path, job.input_path(path)) for key, path in paths.items()]
    for key, source in job.sources():
        if not prepared and hasattr(source, "path"):
            with contextlib.suppress(PionError):  # `check_data` reports it
                inputs += [
                    LocalInput(f"{key}.path", source.path, path.resolve())
                    for path in find_input(job, source, key).files
                ]
    return inputs


def _left_out(root: Path) -> set[Path]:
    """Return what SkyPilot does not copy, as its own code reads .skyignore or .gitignore."""
    sky_module()
    from sky.data.storage_utils import get_excluded_files

    with quiet():
        return {root / path for path in get_excluded_files(str(root))}


# ---------------------------------------------------------------- the scripts that it starts

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
# What a shell or Python is told to read, or a path that is a command by itself.
_SCRIPT = re.compile(
    r"(?:^|[\s;&|(])(?:(?:bash|sh|source|\.|python3?)\s+(?:-\w+\s+)*|(?=\.{0,2}/|~/))"
    r"([\w./~-]+\.(?:sh|py))\b"
)
# After one of these, a script may come from elsewhere, or a path begins in another folder.
_ELSEWHERE = re.compile(r"\b(?:cd|git|curl|wget|tar|unzip|cat|cp|mv|aws|rsync|pushd)\b|>")


def refuse_missing_script(sky_yaml: SkyYaml, root: Path, left_out: set[Path]) -> None:
    """Raise BadInput if `setup` or `run` starts a script that is not copied to the machine, which
    would end with exit code 127 after a boot that was paid.

    The machine gets what is in `root` except what is `left_out`, and what `file_mounts` name. A
    script that may be of the image, or made on the machine, is not looked for.
    """
    before = ""
    for key in ("setup", "run"):
        before += _COMMENT.sub("", str(sky_yaml.config.get(key) or "")) + "\n"
        for start in _SCRIPT.finditer(before):
            script = start[1]
            file = _source(script, root, sky_yaml.config.get("file_mounts") or {})
            made = _ELSEWHERE.search(before[: start.start(1)])
            if file is None or made or (file.is_file() and file not in left_out):
                continue
            why = "there is no such file here"
            if file.is_file():
                why = "the file is left out by .skyignore or .gitignore"
            advice = (
                "A rental file of `pion init runpod-spot` brings this script. Change such a file."
                if script.endswith(BOOT)
                else f"Put the script into the `workdir` of {sky_yaml.path}, or name it in "
                "`file_mounts`."
            )
            raise BadInput(
                f"{_line_with(script, sky_yaml.path)}: `{key}` starts {script}, which is not "
                f"copied to the machine ({why}: {file}). The machine would end with exit code 127, "
                f"after a boot that you pay. {advice}"
            )


def _source(script: str, root: Path, mounts: Mapping[str, Any]) -> Path | None:
    """Return the file here that becomes the script on the machine; None if nobody can say."""
    for target, source in mounts.items():
        if isinstance(source, str) and (script == target or script.startswith(f"{target}/")):
            return None if "://" in source else expand(source) / script[len(target) + 1 :]
    return None if script.startswith(("/", "~")) else root / script


def _line_with(script: str, path: Path) -> str:
    """Return the rental file, with the line that names the script."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    line = next((n for n, text in enumerate(lines, 1) if script in text.partition("#")[0]), None)
    return f"{path} line {line}" if line else str(path)
