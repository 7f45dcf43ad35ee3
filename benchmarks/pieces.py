"""Compare pieces of text that Ray's tasks tokenize on two cores with the same in one process.

    uv run python -m benchmarks.pieces [--rounds 5] [--pieces 8] [--megabytes 4]

The one process has one thread, and does what a task does, without Ray. By turns, both encode all
pieces. Ray has started and has its processes before that. Run this on an idle machine. Writes
benchmarks/results/pieces.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.interleaved import alternate, quartiles, ratios, speed_of
from benchmarks.startup import ROOT
from pipeline.data.encode_piece import Encoding, Reading, encode_piece
from pipeline.data.pieces import Piece, cut_pieces
from pipeline.job import Source
from pipeline.stages.prepare_text import tokenizer_files
from pipeline.workers.ray_tasks import RayTasks, ray_tasks
from tests.support.corpora import sentences
from tests.support.piece_corpora import PIECES, corpus_job

RESULT = ROOT / "benchmarks" / "results" / "pieces.json"
LONGEST = 1 << 20  # bytes of a line


def write_text(file: Path, size: int) -> None:
    """Write lines of made-up English, of about `size` bytes together."""
    some = [sentences(number, 12) for number in range(1000)]
    with file.open("w") as lines:
        number = 0
        while lines.tell() < size:
            text = f"{number} {some[number * 7919 % len(some)]} {some[number % len(some)]}"
            lines.write(json.dumps({"text": text}) + "\n")
            number += 1


def in_ray(tasks: RayTasks, encoding: Encoding, pieces: list[Piece]) -> float:
    """Encode the pieces, and return their megabytes."""
    for _ in tasks.map(encode_piece, encoding, pieces):
        pass
    return sum(piece.bytes for piece in pieces) / 1e6


def here(encoding: Encoding, pieces: list[Piece]) -> float:
    """Encode the pieces in this process, and return their megabytes."""
    for piece in pieces:
        encode_piece(encoding, piece)
    return sum(piece.bytes for piece in pieces) / 1e6


def process(shared: None, item: int) -> int:
    """Return which process does the work."""
    return os.getpid()


def wait_for_ray(tasks: RayTasks) -> None:
    """Wait until other processes do the work."""
    from benchmarks.pieces import process  # another process knows it by this module's name

    while list(tasks.map(process, None, [0])) == [os.getpid()]:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=4)
    given = parser.parse_args()
    # As in a task. The tokenizer reads it when it first needs threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        source: Source = corpus_job("jsonl", Path(folder)).data.sources[0]
        encoding = Encoding(
            Reading(source, "data.sources.0", LONGEST, 0.01), tokenizer_files(PIECES)
        )
        files = [Path(folder, f"{number}.jsonl") for number in range(given.pieces)]
        for file in files:
            write_text(file, given.megabytes * 1_000_000)
        pieces = cut_pieces(source, files, LONGEST, given.megabytes * 1_000_000)
        with ray_tasks() as tasks:
            wait_for_ray(tasks)
            found = alternate(
                {
                    "ray": speed_of(lambda number: in_ray(tasks, encoding, pieces)),
                    "one process": speed_of(lambda number: here(encoding, pieces)),
                },
                given.rounds,
                warmup=1,
            )
    each = ratios(found["ray"], found["one process"])
    low, high = quartiles(each)
    result = {
        "cores": os.cpu_count(),
        "pieces": len(pieces),
        "megabytes_per_second": {name: statistics.median(speeds) for name, speeds in found.items()},
        "ratio": {"median": statistics.median(each), "quartiles": [low, high]},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
