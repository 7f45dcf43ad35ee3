"""Write files that are new: the job, and a copy of data that a job can't read as they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pion.errors import BadInput, no_room
from pipeline.console.formats import show, size
from pipeline.new.data_set import DataSet, content_of
from pipeline.new.read import read_file

# Seconds between two lines about a long copy.
SAY_EVERY = 5.0


def write_new(target: Path, lines: Iterable[str]) -> None:
    """Write a file whole or not at all.

    Raises BadInput if `target` exists, if the disk is full, and as `lines` does; then nothing is
    left of the file.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as stream:
            stream.writelines(lines)
        os.link(part, target)  # fails if there is such a file, which a rename would replace
    except FileExistsError:
        raise BadInput(f"{target} exists, and Pion never overwrites a file.") from None
    except OSError as error:
        why = no_room(error, target) or error.strerror or str(error)
        raise BadInput(f"{target} could not be written: {why}. Nothing was written.") from None
    finally:
        part.unlink(missing_ok=True)


def write_copy(data: DataSet, target: Path, *, skip: bool) -> tuple[int, int]:
    """Write all records of a data set to `target`, which must not exist; return how many these are,
    and how many were left out.

    With `skip`, what can't be read is left out. Raises BadInput for the first such record without
    `skip`, for a disk that is too small, and as `write_new` does.
    """
    total = data.group.bytes
    free = shutil.disk_usage(target.absolute().parent).free
    if free < total:
        raise BadInput(
            f"{target}: the copy needs about {size(total)}, and {size(free)} are free. Name "
            "a file on a larger disk: --out FOLDER/NAME.yaml. Nothing was written."
        )
    counts = Counter[str]()
    write_new(target, _lines(data, skip, counts))
    return counts["written"], counts["left out"]


def _lines(data: DataSet, skip: bool, counts: Counter[str]) -> Iterator[str]:
    begun, total = time.monotonic(), size(data.group.bytes)
    for item in (i for file in data.group.files for i in read_file(data.group.kind, file)):
        counts["bytes"] += item.bytes
        if time.monotonic() - begun > SAY_EVERY:
            begun = time.monotonic()
            show(f"copying {total}: {size(counts['bytes'])}, {counts['written']:,} records")
        try:
            record = content_of(data, item).record
        except BadInput as error:
            if not skip:
                raise BadInput(f"{error}. Nothing was written.") from None
            counts["left out"] += 1
            continue
        if str(record.get("text", "x")).strip():
            # Parquet has values that JSON lacks, such as moments.
            yield json.dumps(record, ensure_ascii=False, default=str) + "\n"
            counts["written"] += 1
