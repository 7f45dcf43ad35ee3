"""Read the tensors of a checkpoint: from one file, or from the parts that several ranks wrote.

Of N ranks that have a model in parts, rank R (from 1) writes `model-R-of-N.safetensors`, and of the
optimizer's state `optimizer-R-of-N.safetensors`. A part has some elements of tensors, flat and in
order. The metadata in the file's header says which: ranges [start, stop) of the flattened tensor.
Together, the parts have each element once. A tensor without elements is in the first part.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput
from pion.formats.weights import read_header, read_tensors
from pion.later_fields import shown
from pion.untrusted import parse_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# What a checkpoint has files of.
MODEL, OPTIMIZER = "model", "optimizer"
# The most ranks that write parts: a checkpoint may have 1,024 files.
MOST_PARTS = 500
_NAME = re.compile(r"(model|optimizer)-(0|[1-9][0-9]*)-of-(0|[1-9][0-9]*)\.safetensors")
_PART, _ELEMENTS = "part", "elements"
# The most dimensions of a tensor. Weights and moments have up to three.
_MOST_DIMENSIONS = 8

Range = tuple[int, int]


@dataclass(frozen=True)
class Elements:
    """Which elements a part has of a tensor of this `shape`: ranges [start, stop), in order."""

    shape: tuple[int, ...]
    ranges: tuple[Range, ...]

    @property
    def count(self) -> int:
        """How many elements the part has."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True)
class Source:
    """Where elements of a tensor are: the range `of` the tensor is in `file`, from `offset` on."""

    of: Range
    file: str
    offset: int


def whole_name(kind: str) -> str:
    """Return the name of the only file of its kind."""
    return f"{kind}.safetensors"


def part_name(kind: str, rank: int, count: int) -> str:
    """Return the name of the part of `rank` (from 0) of `count` ranks."""
    return f"{kind}-{rank + 1}-of-{count}.safetensors"


def is_of(kind: str, name: str) -> bool:
    """Return whether a file of this name has tensors of this kind: all of them, or a part."""
    found = _NAME.fullmatch(name)
    return name == whole_name(kind) or (found is not None and found[1] == kind)


def is_in_parts(folder: Path) -> bool:
    """Return whether a folder has no whole weights, but parts of them. Raises as `saved_files`."""
    names = _names_in(folder)
    return whole_name(MODEL) not in names and any(is_of(MODEL, name) for name in names)


def files_of(kind: str, names: Collection[str]) -> list[str] | None:
    """Return which of the files `names` have the tensors of this kind, by rank; None: none has.

    If one file has them all, no parts are read. Raises BadInput, a clause without the folder, for
    a part that is missing, and for parts that different numbers of ranks have written.
    """
    if whole_name(kind) in names:
        return [whole_name(kind)]
    found = [match for name in names if (match := _NAME.fullmatch(name)) and match[1] == kind]
    if not found:
        return None
    counts = sorted({int(match[3]) for match in found})
    if len(counts) > 1:
        some = " and ".join(f"{count:,}" for count in counts[:2])
        raise BadInput(f"it has {kind} files of {some} ranks, which are of different checkpoints")
    count = counts[0]
    if not 0 < count <= MOST_PARTS:
        raise BadInput(
            f"the name {shown(found[0].string)} claims that there are {count:,} parts; 1 to "
            f"{MOST_PARTS} are possible"
        )
    expected = [part_name(kind, rank, count) for rank in range(count)]
    present = {match.string for match in found}
    if missing := [name for name in expected if name not in present]:
        raise BadInput(f"{missing[0]} is missing")
    if other := present.difference(expected):
        raise BadInput(f"the name {shown(min(other))} is of no part: there are {count:,}")
    return expected


def part_metadata(rank: int, count: int, elements: Mapping[str, Elements]) -> dict[str, str]:
    """Return what the header of a part says of the elements in it, by tensor."""
    listed = {name: [own.shape, own.ranges] for name, own in sorted(elements.items())}
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False)
    return {_PART: f"{rank + 1} of {count}", _ELEMENTS: text}


def elements_in(path: Path, rank: int, count: int) -> dict[str, Elements]:
    """Return which elements of each tensor a part has, by its header.

    Raises BadInput that names the file for a header that is damaged or of another part, and for
    elements that are not those of the file's tensors, and for a file that can't be read.
    """
    header = _header_of(path)
    metadata = header.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    if metadata.get(_PART) != f"{rank + 1} of {count}":
        raise BadInput(
            f"{path} says that it is part {shown(metadata.get(_PART))}, but should be part "
            f"{rank + 1} of {count}"
        )
    text = metadata.get(_ELEMENTS)
    listed = parse_object(text if isinstance(text, str) else "", f"the list of elements in {path}")
    if listed.keys() != header.keys():
        name = min(listed.keys() ^ header.keys())
        raise BadInput(
            f"{path} has {shown(name)} only as a tensor, or only in its list of elements"
        )
    elements = {}
    for name, own in listed.items():
        found = _elements(own)
        if found is None:
            raise BadInput(
                f"{path}: of {shown(name)}, it claims the elements {shown(own)}; no tensor has them"
            )
        if header[name].get("shape") != [found.count]:
            raise BadInput(
                f"{path}: of {shown(name)}, it should have {found.count:,} elements, but has "
                f"the shape {shown(header[name].get('shape'))}"
            )
        elements[name] = found
    return elements


def _header_of(path: Path) -> dict[str, Any]:
    try:
        return read_header(path)
    except FileNotFoundError:
        raise BadInput(_vanished(path)) from None
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror or error})") from None


def _vanished(path: Path) -> str:
    """Return what to say of a file that its folder lists, but that is not there."""
    return (
        f"{path} was deleted while it was read, or is a link to a file that is gone. Bring it "
        "back, or run the same command again"
    )


def _elements(listed: Any) -> Elements | None:
    """Return what a list of elements means, or None if it means nothing."""
    match listed:
        case [list() as shape, list() as ranges]:
            pairs = [pair for pair in ranges if isinstance(pair, list) and len(pair) == 2]
            numbers = [*shape, *itertools.chain.from_iterable(pairs)]
            if len(pairs) == len(ranges) and all(map(_is_count, numbers)):
                found = Elements(tuple(shape), tuple((start, stop) for start, stop in pairs))
                stops = [0, *(stop for _, stop in found.ranges)]
                ascend = all(a <= start < stop for a, (start, stop) in zip(stops, found.ranges))
                fits = _is_shape(shape) and stops[-1] <= math.prod(shape)
                return found if ascend and fits else None
    return None


def _is_shape(sizes: list[int]) -> bool:
    """Return whether torch can have a tensor of these sizes, also if one of them is 0."""
    return len(sizes) <= _MOST_DIMENSIONS and _is_count(math.prod(size or 1 for size in sizes))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def sources(
    where: str | Path, elements: Mapping[str, Mapping[str, Elements]]
) -> dict[str, list[Source]]:
    """Return where all elements of each tensor are, in order. `elements` are by file.

    Raises BadInput that begins with `where` for elements that no file or two files have, and for
    files that claim different shapes.
    """
    found: dict[str, list[Source]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file, tensors in elements.items():
        for name, own in tensors.items():
            if shapes.setdefault(name, own.shape) != own.shape:
                raise BadInput(
                    f"{where}: {file} and another part claim different shapes of {shown(name)}: "
                    f"{shown(own.shape)} and {shown(shapes[name])}"
                )
            before = 0
            for start, stop in own.ranges:
                found.setdefault(name, []).append(Source((start, stop), file, before))
                before += stop - start
            found.setdefault(name, [])
    for name, files in found.items():
        files.sort(key=lambda source: source.of)
        if problem := _uncovered(files, math.prod(shapes[name])):
            raise BadInput(f"{where}: of {shown(name)}, {problem}")
    return found


def _uncovered(files: Iterable[Source], elements: int) -> str | None:
    """Return, as a clause, which elements are in no part, or in two; None if each is in one."""
    ranges = [(0, 0), *(source.of for source in files), (elements, elements)]
    for (_, before), (after, _) in itertools.pairwise(ranges):
        if before < after:
            return f"the elements from {before:,} to {after:,} are in no part"
        if before > after:
            return f"the elements from {after:,} to {before:,} are in two parts"
    return None


class SavedTensors:
    """The tensors of a checkpoint on this machine, read when somebody asks for their elements.

    `parts` has the shape of each tensor by name, and all of its elements in order: flat tensors
    that are mapped from the files.
    """

    def __init__(self, parts: Mapping[str, tuple[torch.Size, list[Tensor]]]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SavedTensors:
        """Return these whole tensors."""
        return cls({name: (each.shape, [each.view(-1)]) for name, each in tensors.items()})

    def joined(self, sources: Mapping[str, tuple[torch.Size, list[str]]]) -> SavedTensors:
        """Return tensors of these shapes: each is one of these tensors, or several one after the
        other."""
        return SavedTensors(
            {
                name: (shape, [part for source in some for part in self._parts[source][1]])
                for name, (shape, some) in sources.items()
            }
        )

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the shape and the dtype of each whole tensor."""
        return {name: (shape, parts[0].dtype) for name, (shape, parts) in self._parts.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of the flattened tensor, flat.

        They are mapped from a file if they follow each other there. Other elements are copied.
        """
        import torch

        parts = self._parts[name][1]
        found, begin = [], 0
        for part in parts:
            end = begin + part.numel()
            if begin < stop and start < end:
                found.append(part[max(start - begin, 0) : stop - begin])
            begin = end
        if len(found) == 1:
            return found[0]
        return torch.cat(found) if found else parts[0][:0]

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor: mapped from its file, or joined in memory."""
        import torch

        shape, parts = self._parts[name]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors whole."""
        return {name: self.whole(name) for name in self._parts}


def read_saved(folder: Path, kind: str) -> SavedTensors:
    """Return the tensors of one kind in a checkpoint's folder, whole or in parts.

    Raises FileNotFoundError if the folder has neither, and BadInput that names what is wrong: a
    file is missing, damaged or can't be read, an element is in no part or in two, or parts of a
    tensor have different types.
    """
    import torch

    files = saved_files(folder, kind)
    if files == [whole_name(kind)]:
        whole = read_tensors(folder / files[0], _vanished(folder / files[0]))
        return SavedTensors.of(whole)
    elements = elements_by_file(folder, files)
    tensors = {file: read_tensors(folder / file, _vanished(folder / file)) for file in files}
    parts = {}
    for name, found in sources(folder, elements).items():
        having = [file for file in files if name in elements[file]]
        kinds = {tensors[file][name].dtype for file in having}
        if len(kinds) > 1:
            some = " and ".join(sorted(map(str, kinds))[:2])
            raise BadInput(f"{folder}: the parts of {shown(name)} have different types: {some}")
        flat = [tensors[s.file][name][s.offset : s.offset + s.of[1] - s.of[0]] for s in found]
        shape = torch.Size(elements[having[0]][name].shape)
        parts[name] = shape, flat or [tensors[having[0]][name]]
    return SavedTensors(parts)


def saved_files(folder: Path, kind: str) -> list[str]:
    """Return the names of the files with the tensors of one kind, by rank.

    Raises FileNotFoundError, NotADirectoryError, and BadInput for a folder that can't be read, and
    for parts that are not those of as many ranks as there are.
    """
    names = _names_in(folder)
    try:
        files = files_of(kind, names)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None
    if files is None:
        raise FileNotFoundError(f"{folder} has no {whole_name(kind)}")
    return files


def _names_in(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise BadInput(f"{folder} can't be read ({error.strerror or error})") from None


def elements_by_file(folder: Path, files: list[str]) -> dict[str, dict[str, Elements]]:
    """Return which elements of each tensor the parts `files`, by rank, have. Raises BadInput."""
    return {file: elements_in(folder / file, rank, len(files)) for rank, file in enumerate(files)}
