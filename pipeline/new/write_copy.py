"""Write a copy of data as JSON Lines, where a job can't read the files as they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pion.errors import BadInput, no_room
from pipeline.console.formats import size
from pipeline.new.decide import Reading
from pipeline.new.look import content_of
from pipeline.new.read import read_file

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


def _copy(
    reading: Reading, write: Callable[[str], object], skip: bool, say: Callable[[str], None]
) -> tuple[int, int]:
    records = left_out = done = 0
    said = time.monotonic()
    for file in reading.group.files:
        for item in read_file(reading.group.kind, file):
            done += item.bytes
            try:
                record = content_of(reading, item).record
            except BadInput as error:
                if not skip:
                    raise BadInput(f"{error}. Nothing was written.") from None
                left_out += 1
            else:
                if str(record.get("text", "x")).strip():
                    # Parquet has values that JSON lacks, such as moments.
                    write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
                    records += 1
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"copying {size(reading.group.bytes)}: {size(done)}, {records:,} records")
    return records, left_out
