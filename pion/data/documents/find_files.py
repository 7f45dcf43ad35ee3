"""Find the files of a source: those of a folder or a glob, without hidden ones, by their splits."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from pion.errors import BadInput
from pion.untrusted import FarFile

# A packed file is read like one that is not.
PACKED_SUFFIXES = (".gz", ".zst")
TEXT_SUFFIXES = tuple(end + packed for end in (".txt", ".md") for packed in ("", *PACKED_SUFFIXES))
JSONL_SUFFIXES = (
    *(end + packed for end in (".jsonl", ".ndjson") for packed in ("", *PACKED_SUFFIXES)),
    *(".json" + packed for packed in PACKED_SUFFIXES),
)
PARQUET_SUFFIXES = (".parquet",)
# What the words of a name say that a file is for.
TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "evaluation"), HELD_OUT),
    **dict.fromkeys(("test", "testing"), TEST),
}
# They are in names such as train-00000-of-00002.parquet, and say nothing.
_NO_WORDS = frozenset(
    (
        "of",
        "txt",
        "md",
        "jsonl",
        "ndjson",
        "json",
        "gz",
        "zst",
        "parquet",
        "csv",
        "tsv",
        "npy",
        "bin",
    )
)
# macOS puts a folder of this name into an archive, next to somebody's data.
_OF_MACOS = "__MACOSX"
# By what an address begins with, the command that brings it. A path has lost one of the slashes.
_FAR = re.compile(r"(?:^|/)(s3|gs|hf|https?|az|abfss?|hdfs|ftp):/+(.+)$")
_COMMANDS = {
    "s3": "aws s3 cp s3://{0} data/ (--recursive for a folder). Text, JSON Lines and parquet may "
    "stay there as sources of a job",
    "gs": "gcloud storage cp -r gs://{0} data/",
    "hf": "a source with kind: hub and repo: user/name needs no copy",
    "http": "curl -LO http://{0}",
    "https": "curl -LO https://{0}",
}


def find_files(path: Path, suffixes: tuple[str, ...], key: str) -> tuple[list[Path], list[str]]:
    """Return the files that `path` names, sorted, and a sentence for each reason to leave some out.

    `path` is a file, a folder whose files have one of `suffixes`, or a glob. Hidden files of a
    folder don't count. A file that several links lead to counts once. `key` is the job's key with
    the path, for the message. Raises BadInput if no file matches, and for what is no file of data.
    """
    refuse_unreadable(path, key)
    if path.is_file():
        return [path], []
    named: Sequence[Path]
    if isinstance(path, FarFile):
        named, problem = path.named(suffixes)
    elif path.is_dir():
        named = [file for file in files_below(path) if file.name.endswith(suffixes)]
        plain = [end for end in suffixes if not end.endswith(PACKED_SUFFIXES)]
        problem = f"no {' or '.join(f'*{end}' for end in plain)} file in the folder {path}"
    elif glob.has_magic(str(path)):
        named = [Path(p) for p in glob.glob(str(path), recursive=True) if not Path(p).is_dir()]
        problem = f"no file matches {path}"
    else:
        named, problem = [], f"no such file or folder: {path}"
        neighbours = (
            [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        )
        if near := difflib.get_close_matches(path.name, neighbours, 1):
            problem += f". Did you mean {path.with_name(near[0])}?"
    files, remarks = without_hidden(named, _root(path))
    if not files:
        raise BadInput(f"{key}: {'; '.join((problem, *remarks))}")
    return files, remarks


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder. Links to folders are not followed."""
    for directory, _, names in os.walk(folder):
        for name in names:
            yield Path(directory, name)


def without_hidden(named: Iterable[Path], root: Path) -> tuple[list[Path], list[str]]:
    """Return those files below `root` that are read, sorted, and a sentence for each reason to
    leave others out."""
    files: dict[str, Path] = {}
    again, odd, hidden = [], [], []
    real = cache(os.path.realpath)  # of 100,000 files, each costs as much as to read it
    for each in sorted(named, key=lambda p: p.as_posix()):
        if is_hidden(each.relative_to(root)):
            hidden.append(each)
        elif not each.is_file():
            odd.append(each)
        else:
            linked = each.is_symlink()
            target = real(each) if linked else os.path.join(real(each.parent), each.name)
            if files.setdefault(target, each) != each:
                again.append(each)
    remarks = [
        f"left out, {why}: {len(them):,}, such as {them[0]}"
        for them, why in (
            (again, "read already by another name"),
            (odd, "neither a file nor a folder"),
            (hidden, "hidden"),
        )
        if them
    ]
    return list(files.values()), remarks


def refuse_unreadable(path: Path, key: str) -> None:
    """Raise BadInput for a path that can have no data: an address, a device, a file of the
    system."""
    if isinstance(path, FarFile):
        return
    if (far := _FAR.search(str(path))) and not path.exists():
        scheme, rest = far.groups()
        how = _COMMANDS.get(scheme, "copy it with the tool of that service").format(rest)
        raise BadInput(
            f"{key}: {scheme}://{rest} is not on this machine, and files of data are read from "
            f"this machine. Bring it first: {how}"
        )
    if path.exists() and not path.is_dir() and not path.is_file():
        raise BadInput(f"{key}: {path} is not a regular file, so it was not read")
    if path.resolve().parts[1:2] in (("proc",), ("sys",)):
        raise BadInput(f"{key}: {path} shows the state of this machine, and is no file of data")


def is_hidden(relative: Path) -> bool:
    """Return whether a file below a folder is hidden: by a dot, by its folders, or by macOS."""
    return any(part.startswith(".") or part == _OF_MACOS for part in relative.parts)


@dataclass(frozen=True)
class Splits:
    """Files by what their names say that they are for.

    Attributes:
        files: the files to read, sorted.
        held_out: those of them that are held out; None: names do not decide what is held out.
        words: what names decide, as a sentence; "" if they decide nothing.
    """

    files: tuple[Path, ...]
    held_out: frozenset[Path] | None = None
    words: str = ""


def by_splits(path: Path, files: Sequence[Path], *, records: bool) -> Splits:
    """Return the files of a folder or a glob by their splits.

    A file or its folder is called train, valid (validation, val, dev, eval) or test, or the first
    or the last word of its name is. Without any train, such words may mean something else. Then
    all files are read, except that files of `records` called just valid or test are no training
    data where others are.
    """
    root = _root(path)
    split_of = {} if path.is_file() else {f: _split(f.relative_to(root)) for f in files}
    if not set(split_of.values()) & {HELD_OUT, TEST}:
        return Splits(tuple(files))
    if TRAIN not in split_of.values():
        sure = {f: _split(f.relative_to(root), whole=True) if records else "" for f in files}
        if all(sure.values()) or not any(sure.values()):
            odd = [file for file, split in split_of.items() if split]
            remark = f"read like all others, because no file is called train: {_such(odd)}"
            return Splits(tuple(files), words=remark)
        split_of = sure
    held_out, test = ([f for f, s in split_of.items() if s == name] for name in (HELD_OUT, TEST))
    train = [file for file in files if file not in (*held_out, *test)]
    parts = (
        f"by their names: to train on {_such(train)}",
        f"held out, in place of a share of the others, {_such(held_out)}" if held_out else "",
        f"not used {_such(test)}" if test else "",
    )
    used = tuple(file for file in files if split_of[file] != TEST)
    return Splits(used, frozenset(held_out) or None, "; ".join(filter(None, parts)))


def _such(files: Sequence[Path]) -> str:
    return f"{len(files):,} ({files[0].name}{', …' if len(files) > 1 else ''})"


def _root(path: Path) -> Path:
    """Return the folder below which names count: of a glob, that before its first wildcard."""
    if path.is_dir():
        return path
    return type(path)(*takewhile(lambda part: not glob.has_magic(part), path.parts))


def _split(relative: Path, *, whole: bool = False) -> str:
    """Return what a name says that a file is for; "" if nothing. `whole`: by its only word."""
    parts = re.findall(r"[^\W\d_]+", relative.name.lower())
    words = [word for word in parts if word not in _NO_WORDS]
    ends = () if whole and len(words) > 1 else (*words[-1:], *words[:1])
    folders = (part.lower() for part in relative.parts[-2::-1])
    return next((_SPLIT_OF[word] for word in (*ends, *folders) if word in _SPLIT_OF), "")
