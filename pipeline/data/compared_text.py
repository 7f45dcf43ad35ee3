"""The text that tells what a model has forgotten: measured before and after training, never trained
on.

It is the job's `evaluate.text`, or else a sample that was written for Pion and comes with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pion.data.documents.file_to_documents import (
    Record,
    Span,
    at_least_one,
    jsonl_records,
    text_documents,
    whole_characters,
)
from pion.data.documents.find_files import JSONL_SUFFIXES, TEXT_SUFFIXES, find_files
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.job import Job

KEY = "evaluate.text"
SAMPLE = Path(__file__).with_name("sample_text.txt")


@dataclass(frozen=True)
class ComparedText:
    """Files of text, found. `longest` is the number of bytes that a line may have."""

    path: Path
    files: tuple[Path, ...]
    longest: int

    @property
    def sha256(self) -> str:
        """The hash of the bytes of all files, one after the other."""
        digest = hashlib.sha256()
        for file in self.files:
            with open_file(file) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def texts(self) -> Iterator[str]:
        """Return each paragraph of text files, and the `text` of each line of JSON Lines.

        Raises BadInput if a file can't be read as that, or if there is no text at all.
        """
        if self.files[0].name.endswith(JSONL_SUFFIXES):
            lines = map(_text_of, jsonl_records(list(map(Span, self.files)), KEY, self.longest))
            texts = (text for text in lines if text.strip())
            parts = at_least_one(texts, f"{KEY}: there is no text in {self.path}")
        else:
            documents = text_documents(list(map(Span, self.files)), "paragraph", KEY, self.longest)
            parts = (document.text for document in documents)
        return map(whole_characters, parts)


def _text_of(record: Record) -> str:
    text = record.value.get("text")
    if not isinstance(text, str):
        raise BadInput(
            f'{record.origin}: {KEY} needs lines such as {{"text": "…"}}, and this line has no '
            'text under "text"'
        )
    return text


def find_text(job: Job) -> ComparedText:
    """Find the job's text, or the sample. Raises BadInput if there is no such file.

    A folder counts with its text files; if it has none, with its JSON Lines files.
    """
    path = SAMPLE if job.evaluate.text is None else job.kept_path(job.evaluate.text)
    no_text = path.is_dir() and not any(p.name.endswith(TEXT_SUFFIXES) for p in path.rglob("*"))
    files, _ = find_files(path, JSONL_SUFFIXES if no_text else TEXT_SUFFIXES, KEY)
    return ComparedText(path, tuple(files), int(job.data.max_line_mb * 1e6))


def check_text(job: Job) -> ComparedText:
    """Read as much of the job's text as is measured, and return the text. Raises BadInput."""
    text = find_text(job)
    try:
        for _ in islice(text.texts(), job.evaluate.final_rows):
            pass
    except OSError as error:
        raise BadInput(f"{KEY}: {text.path} can't be read ({error.strerror or error})") from None
    return text
