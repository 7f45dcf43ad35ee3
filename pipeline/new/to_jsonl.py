"""The command `python -m pipeline.new.to_jsonl PATH`: the records of files as JSON Lines.

A job reads preferences as JSON Lines or parquet. This writes those of .json, .csv and .tsv files to
the standard output, as `pion new` reads them: the same columns, encodings and lists.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import printable
from pipeline.new.files import find_data
from pipeline.new.read import Progress, read_file


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, or of all files of a folder that are no JSON Lines yet.

    Raises BadInput for the first that can't be read.
    """
    for group in find_data(path).groups:
        for file in group.files if group.kind in ("json", "csv") else ():
            for item in read_file(group.kind, file, math.inf, Progress()):
                if item.record is None:
                    raise BadInput(
                        f"{item.problem}. What was written ends before it: correct it, and start "
                        "again."
                    )
                yield item.record


def main(path: Path) -> int:
    """Write the records; return the exit status."""
    try:
        for record in records_of(path):
            print(json.dumps(record))
    except BadInput as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.new.to_jsonl")
    parser.add_argument("path", type=Path, help="a .json, .csv or .tsv file, or a folder of these")
    sys.exit(main(parser.parse_args().path))
