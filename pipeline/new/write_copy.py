"""Write a copy of data as JSON Lines, where a job can't read the files as they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pion.data.chat.messages import with_texts
from pion.data.documents.file_to_documents import whole_characters
from pion.errors import BadInput, no_room
from pipeline.console.formats import size
from pipeline.new.look import Reading
from pipeline.new.read import Progress, read_file

# Seconds between two lines about a long copy.
SAY_EVERY = 5.0


def write_copy(
    reading: Reading, target: Path, *, skip: bool, say: Callable[[str], None] = lambda words: None
) -> tuple[int, int]:
    """Write all records of `reading` to `target`, which must not exist; return how many these are,
    and how many were left out.

    With `skip`, what can't be read is left out. Raises BadInput for the first such record without
    `skip`, if `target` exists, and if the disk is full; then nothing is left of the copy.
    """
    group = reading.group
    free = shutil.disk_usage(target.absolute().parent).free
    if free < group.bytes:
        raise BadInput(
            f"{target}: the copy needs about {size(group.bytes)}, and {size(free)} are free. Name "
            "a file on a larger disk: --out FOLDER/NAME.yaml. Nothing was written."
        )
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as stream:
            copied = _copy(reading, stream.write, skip, say)
        os.link(part, target)  # fails if there is such a file, which a rename would replace
    except FileExistsError:
        raise BadInput(f"{target} exists, and Pion never overwrites a file.") from None
    except OSError as error:
        why = no_room(error, target) or error.strerror or str(error)
        raise BadInput(f"{target} could not be written: {why}. Nothing was written.") from None
    finally:
        part.unlink(missing_ok=True)
    return copied


def _line(record: dict[str, Any]) -> str:
    # Parquet has values that JSON lacks, such as moments.
    return json.dumps(with_texts(record, whole_characters), ensure_ascii=False, default=str) + "\n"


def _copy(
    reading: Reading, write: Callable[[str], object], skip: bool, say: Callable[[str], None]
) -> tuple[int, int]:
    records = left_out = done = 0
    said = time.monotonic()
    for file in reading.group.files:
        for item in read_file(reading.group.kind, file, float("inf"), Progress()):
            problem, record = item.problem, {}
            if item.record is not None:
                record = reading.usable(item.record)
                try:
                    reading.content(record, item.where)
                except BadInput as error:
                    problem = str(error)
            done += item.bytes
            if problem is not None and not skip:
                raise BadInput(f"{problem}. Nothing was written.")
            if problem is not None:
                left_out += 1
            elif str(record.get("text", "x")).strip():
                write(_line(record))
                records += 1
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"copying {size(reading.group.bytes)}: {size(done)}, {records:,} records")
    return records, left_out
