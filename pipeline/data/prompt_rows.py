"""Reads the prompts of a split, and what rewards get of each, by the number of a training row."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from pion.data.arrays import open_npy
from pion.data.row_flags import PADDING
from pion.data.shards import Manifest, flags_path
from pion.data.stream import RowStream
from pion.errors import BadInput
from pion.files import sha256_file
from pion.untrusted import open_file, parse_json
from pipeline.data.prepared import SPLITS, PreparedData
from pipeline.data.prompts import RECORDS


@dataclass(frozen=True)
class PromptRows:
    """The prompts of a split. Threads may share it.

    Attributes:
        stream: the rows of the split, in training order.
        longest: the most ids of a prompt, of both splits: one cache is for training and evaluation.
    """

    stream: RowStream
    longest: int
    _lines: list[memoryview] = field(repr=False)

    @classmethod
    def of(cls, data: PreparedData, stream: RowStream, split: str) -> PromptRows:
        """Return the prompts of "train" or "held_out", whose rows are those of `stream`.

        Raises BadInput if a file is missing, or is not what its manifest says.
        """
        longest, lines = 0, []
        for source, each in itertools.product(data.sources, SPLITS):
            folder, manifest = data.folder / source.folder / each, data.manifest(source, each)
            if each == split:
                lines += _lines(folder / RECORDS, manifest)
            for shard in manifest.shards:
                flags = open_npy(flags_path(folder / shard.name), manifest.seq_len)
                longest = max(longest, int(((flags & PADDING) == 0).sum(axis=1).max()))
        return cls(stream, longest, lines)

    def ids(self, row: int) -> list[int]:
        """Return the prompt of training row number `row`. Raises BadInput as the stream does."""
        found = self.stream.row(row)
        assert found.documents is not None
        return [int(one) for one in found.tokens[found.documents >= 0]]

    def question(self, row: int) -> tuple[str | list[Any], Any, dict[str, Any], str]:
        """Return the prompt (a text, or messages), the right answer, the whole record and how the
        answer begins, of training row number `row`."""
        number = self.stream.number_of(self.stream.place(row))
        found = parse_json(bytes(self._lines[number]), f"{RECORDS}, row {row}", strict=False)
        return found["prompt"], found["answer"], found["record"], found.get("begun", "")


def _lines(path: Path, manifest: Manifest) -> list[memoryview]:
    """Return the lines of RECORDS, mapped from the file. Raises BadInput."""
    if path.is_file() and sha256_file(path) == manifest.records:
        with open_file(path) as file:
            content = mmap(file.fileno(), 0, access=ACCESS_READ)
        found = re.finditer(rb"[^\n]+\n", content)
        lines = [memoryview(content)[slice(*one.span())] for one in found]
        if len(lines) == manifest.rows:
            return lines
    raise BadInput(
        f"{path} is missing, or is not what was written with these rows. Prepare the data again: "
        "--redo prepare"
    )
