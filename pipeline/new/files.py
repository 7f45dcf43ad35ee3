"""Which files a person has, by the kind of source that can read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pion.data.documents.find_files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    by_splits,
    files_below,
    is_hidden,
    refuse_unreadable,
    without_hidden,
)
from pion.data.documents.unpack import opened
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.console.formats import counted

FileKind = Literal["text", "jsonl", "parquet", "json", "csv"]

# By kind, how the names of its files end. Job files have the first three kinds; Pion writes a copy
# of the others.
SUFFIXES: dict[FileKind, tuple[str, ...]] = {
    "text": TEXT_SUFFIXES,
    "jsonl": JSONL_SUFFIXES,
    "parquet": PARQUET_SUFFIXES,
    "json": (".json",),
    "csv": (".csv", ".tsv"),
}
IN_WORDS: dict[FileKind, str] = {
    "text": "text",
    "jsonl": "JSON Lines",
    "parquet": "parquet",
    "json": "JSON",
    "csv": "CSV",
}
TOKENIZED = (".npy", ".bin")
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
# Next to data, these describe the data. A folder of nothing else is text.
DESCRIPTIONS = ("readme", "license", "licence", "notice", "changelog", "dataset_card")
READS = (
    "Pion reads text (.txt, .md) and JSON Lines (.jsonl, .ndjson), also .gz and .zst, JSON (a "
    "list of objects), CSV (.csv, .tsv) and parquet"
)
# So much of a file shows whether it is text.
PEEKED = 1 << 16


@dataclass(frozen=True)
class Group:
    """Files of one kind that one source of a job can name as `path`: a file or a folder.

    `files` are those to train on.
    """

    kind: FileKind
    path: Path
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """The bytes on this disk."""
        return sum(file.stat().st_size for file in self.files)


def find_data(path: Path) -> tuple[list[Group], list[str]]:
    """Return the files that `path`, a file or a folder, has for a job, and a sentence for each
    reason to leave files out.

    Raises BadInput if there are none, naming what is there instead.
    """
    refuse_unreadable(path, "data")
    if path.is_file():
        return [Group(_kind_of(path), path, (path,))], []
    if not path.is_dir():
        raise BadInput(f"{path} does not exist. Give a file or a folder. {READS}.")
    below = sorted(files_below(path))
    rest = [file for file in below if not is_hidden(file.relative_to(path))]
    if not rest:
        raise BadInput(f"{path} is empty: it has no files. {READS}.")
    _refuse_weights(path, rest)
    groups, notes = list[Group](), list[str]()
    for kind, suffixes in SUFFIXES.items():
        files, why = without_hidden((file for file in below if file.name.endswith(suffixes)), path)
        files = [file for file in files if kind != "json" or not _is_settings(file)]
        splits = by_splits(path, files, records=kind != "text")
        notes += filter(None, (*why, splits.words))
        rest = [file for file in rest if file not in files]
        if train := tuple(f for f in splits.files if f not in (splits.held_out or ())):
            groups.append(Group(kind, path, train))
    others = [group for group in groups if group.kind != "text"]
    texts = [file for group in groups if group.kind == "text" for file in group.files]
    if others and texts and all(file.stem.lower() in DESCRIPTIONS for file in texts):
        groups = others
        notes.append(f"left out, about the data: {', '.join(file.name for file in texts[:3])}")
    if not groups:
        raise BadInput(f"{path} has no data: {_by_ending(rest)}. {READS}.")
    if rest:
        notes.append(f"left out, not read by Pion: {_by_ending(rest)}, such as {rest[0]}")
    return groups, notes


def _kind_of(file: Path) -> FileKind:
    """Return the kind of a file that a person named. Raises BadInput if it has none."""
    for kind, suffixes in SUFFIXES.items():
        if file.name.lower().endswith(suffixes):
            return "json" if kind == "jsonl" and _beginning(file).startswith(b"[") else kind
    _refuse_weights(file, [file])
    try:
        with opened(file) as stream:
            if b"\0" in stream.read(PEEKED):
                raise BadInput(f"{file} is not text: it has zero bytes. {READS}.")
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror or error}") from None
    return "text"


def _beginning(file: Path) -> bytes:
    with open_file(file) as stream:
        return stream.read(PEEKED).lstrip(b"\xef\xbb\xbf \t\r\n")


def _refuse_weights(path: Path, files: Sequence[Path]) -> None:
    """Raise BadInput for the file or the folder of a model, and for tokenized files."""
    weights = [file for file in files if file.suffix.lower() in WEIGHTS]
    models = {file.parent for file in weights if (file.parent / "config.json") in files}
    endings = tuple(end for kind, ends in SUFFIXES.items() if kind != "json" for end in ends)
    data = any(file.name.endswith(endings) and file.parent not in models for file in files)
    if data and models and path not in models:
        raise BadInput(
            f"{path} has data, and a model in {min(models)}. Give the folder or the file of the "
            "data, or move the model to another folder."
        )
    if models or (not data and any(file.suffix.lower() not in TOKENIZED for file in weights)):
        raise BadInput(
            f"{path} has the weights of a model ({weights[0].name}), not data. To start from this "
            "model, name your data first: pion new DATA --from "
            f"{path if path.is_dir() else path.parent}"
        )
    if not data and any(file.suffix.lower() in TOKENIZED for file in files):
        raise BadInput(
            f"{path} has tokens, not text. A job reads tokenized files with kind: npy or kind: bin "
            "(`pion help jobs`), and names their tokenizer, so write this job by hand."
        )


def _is_settings(file: Path) -> bool:
    """Return whether a .json file has one object, such as a config.json, and no list of records."""
    beginning = _beginning(file)
    first = beginning.split(b"\n", 1)[0].strip()
    return not (beginning.startswith(b"[") or (first.startswith(b"{") and first.endswith(b"}")))


def _by_ending(files: Sequence[Path]) -> str:
    """Return `12 files .pdf, 3 files .png`, the most frequent first."""
    endings = Counter(file.suffix or "without an ending" for file in files).most_common(4)
    return ", ".join(f"{counted(count, 'file')} {ending}" for ending, count in endings)
