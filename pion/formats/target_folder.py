"""The folder that an export is written to: which folders may be replaced, and how.

A run checks this before it starts, so nothing here imports torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pion.config.lora import PEFT_CONFIG, PEFT_TENSORS, RECORD, read_record
from pion.config.model_config import APART
from pion.errors import BadInput
from pion.formats.huggingface.bundled_code import is_modelling_file
from pion.formats.huggingface.tokenizer_files import TOKENIZER_FILES
from pion.formats.weights import GGUF_FILE, MODELFILE, is_legal
from pion.untrusted import parse_object, read_file

# The files of a published folder, apart from modelling files and the other TOKENIZER_FILES of a
# model of others. `verify_export` reads the first six; the card has the last two.
EXPORT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "loss.png",
)
# The files of a published adapter. Its card and tokenizer are as in an export.
ADAPTER_FILES = (PEFT_CONFIG, PEFT_TENSORS, RECORD)
# Folders of an export by their names, each with its files: what changes nothing in the model.
FOLDERS = {name: (f"{name}.json", f"{name}.safetensors") for name in APART}
# Marks a config.json as an export of Pion, for `is_export`. Transformers ignores this entry.
PRODUCER = {"producer": "pion"}


def is_export(folder: str | Path) -> bool:
    """Return whether Pion wrote the folder's config.json and the folder has no foreign files.

    Of an adapter, Pion wrote adapter.json.
    """
    folder = Path(folder)
    if _foreign(folder):
        return False
    try:
        if read_record(folder) is not None:
            return True
        config = parse_object(read_file(folder / "config.json"), "config.json")
    except (OSError, BadInput):
        return False
    return all(config.get(name) == value for name, value in PRODUCER.items())


def _foreign(folder: Path) -> list[str]:
    """Return the names of the files that are not part of an export."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in EXPORT_FILES + ADAPTER_FILES + TOKENIZER_FILES
        and path.name not in (GGUF_FILE, MODELFILE)
        and not is_modelling_file(path)
        and not is_legal(path.name)
        and not _is_folder_of_export(path)
    )


def _is_folder_of_export(path: Path) -> bool:
    """Return whether a path is one of FOLDERS, and has no other files."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    return path.name in FOLDERS and names <= set(FOLDERS[path.name])


def check_replaceable(out: str | Path) -> None:
    """Raise BadInput unless `out` is absent, an empty folder or an earlier export."""
    out = Path(out)
    refuse_current_folder(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"{out} is a file. Name a folder for the model.")
    if any(out.iterdir()) and not is_export(out):
        foreign = _foreign(out)
        listed = (
            f" ({', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''})" if foreign else ""
        )
        raise BadInput(
            f"{out} contains files that are not part of a Pion export{listed}. Nothing was "
            "changed. Name a different folder, or move these files away."
        )


def refuse_current_folder(out: Path) -> None:
    """Raise BadInput if `out` is the current folder or above it, which can't be replaced."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise BadInput(
            f"{out} is the folder that you are in, or above it, and would be replaced. Nothing was "
            f"changed. Name a new folder, such as {out / 'model'}."
        )


def replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`, and delete an existing `target` last.

    Between the two renames only `.{name}.previous` exists. If a call ends there, the next call
    restores it first. If `new` can't be renamed, such as because another process removed it, the
    old `target` stays. Raises OSError.
    """
    previous = target.with_name(f".{target.name}.previous")
    if previous.exists() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(previous)
    try:
        new.rename(target)
    except OSError:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)
