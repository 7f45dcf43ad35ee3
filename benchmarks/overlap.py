"""Measure how fast training rows are searched for the items of evaluation sets, on one core.

    python -m benchmarks.overlap

The text is the prose and the source of Python's standard library, in rows of 1,024 tokens. What is
looked for has the size of CORE's 22 sets with their controls: 3.5 million n-grams, of made-up items
with words of the same text. One item in 1,000 is cut from the text, so it is found. By turns:

  * `text`: rows of 4 KB are read from a file;
  * `ids`: the rows are token ids, which are turned into bytes first (as in a run);
  * `bytes of ids`: only that.

A separate process measures, bound to one core, so that its peak of memory is its own: interpreter,
numpy, the tokenizer, the items' texts, the index and the search. On a busy machine, the speeds by
CPU time say more. Targets: at least 20 MB/s of text, at most 256 MB. Writes
benchmarks/results/overlap.json.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.overlap.found import Found, nothing_found
from pion.evaluation.overlap.index import build_index
from pion.evaluation.overlap.items import Item, ItemSet
from pion.evaluation.overlap.search import search
from pion.evaluation.overlap.token_text import row_texts, token_texts

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "overlap.json"
TOKENIZER = ROOT / "jobs" / "pile_tokenizer.json"
SETS, ITEMS, ITEM_WORDS, SEQ_LEN, ROW_BYTES, ROUNDS = 22, 125_000, 40, 1024, 4096, 9
PLANTED = 1000  # one item in so many is cut from the text
LEAST_MB_PER_SECOND, MOST_MB = 20.0, 256.0


def main() -> None:
    """Prepare the rows, let another process measure, and keep the result."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        before = os.getloadavg()[0]
        measured = subprocess.run(
            [sys.executable, "-m", "benchmarks.overlap", folder],
            check=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "cores": os.cpu_count(),
        "load_average_before": round(before, 2),
        **json.loads(measured.stdout),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def prepare(folder: Path) -> None:
    """Write the standard library's text as rows of ids, and the items."""
    from pion.data.documents.python_docs import documents

    texts = [document.text for document in documents(code=True)]
    tokenizer = Tokenizer.from_file(TOKENIZER)
    ids = [
        token for own in tokenizer.encode_batch(texts) for token in [*own, tokenizer.end_of_text]
    ]
    rows = len(ids) // SEQ_LEN
    whole = np.array(ids[: rows * SEQ_LEN], dtype=np.uint16).reshape(rows, SEQ_LEN)
    np.save(folder / "rows.npy", whole)
    (folder / "text").write_bytes("\n".join(texts).encode())
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for item in some_items(" ".join(texts).split()):
            file.write(json.dumps(item) + "\n")


def some_items(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield question and answer of each item: random words of the text, or a part of the text."""
    chance = random.Random(0)
    for number in range(ITEMS):
        if number % PLANTED == 0:
            first = chance.randrange(len(words) - ITEM_WORDS)
            chosen = words[first : first + ITEM_WORDS]
        else:
            chosen = chance.choices(words, k=ITEM_WORDS)
        yield [" ".join(chosen[:-4]), " ".join(chosen[-4:])]


def read_sets(path: Path) -> list[ItemSet]:
    """Return the items of the file as SETS sets."""
    items = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            question, answer = json.loads(line)
            items.append(Item(question, answer))
    size = -(-len(items) // SETS)
    return [ItemSet(f"set {n}", items[n : n + size]) for n in range(0, len(items), size)]


def measure(folder: Path) -> dict[str, Any]:
    """Return speeds and memory of this process, which nothing else has used."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = token_texts(Tokenizer.from_file(TOKENIZER))
    ids = np.load(folder / "rows.npy", mmap_mode="r")
    began = time.process_time()
    index = build_index(read_sets(folder / "items.jsonl"))
    seconds = time.process_time() - began
    counts: list[int] = []

    def searched(rows: Iterable[bytes]) -> Found:
        found = nothing_found(index)
        search(index, enumerate(rows), found)
        return found

    def by_text() -> int:
        with open(folder / "text", "rb") as file:
            return searched(iter(partial(file.read, ROW_BYTES), b"")).text_bytes

    def by_ids() -> int:
        found = searched(row_texts(ids, texts))
        counts.append(int(found.overlapped(index).sum()))
        return found.text_bytes

    works: dict[str, Callable[[], int]] = {
        "text": by_text,
        "ids": by_ids,
        "bytes of ids": lambda: sum(map(len, row_texts(ids, texts))),
    }
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            size = work()
            wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
            speeds[name].append((size / 1e6 / wall, size / 1e6 / cpu))
    if len(set(counts)) != 1:
        raise SystemExit(f"the searches found different numbers of items: {set(counts)}")
    slowest, peak = min(cpu for _, cpu in speeds["ids"]), peak_memory()
    return {
        "megabytes_of_text": round(size / 1e6, 1),
        "rows": len(ids),
        "items": len(index.sizes),
        "ngrams": len(index.hashes),
        "overlapped_items": counts[0],
        "index_cpu_seconds": round(seconds, 1),
        "rounds": ROUNDS,
        "mb_per_second": {name: spread(wall for wall, _ in own) for name, own in speeds.items()},
        "mb_per_cpu_second": {name: spread(cpu for _, cpu in own) for name, own in speeds.items()},
        "bytes_per_token": round(size / ids.size, 2),
        "peak_megabytes": round(peak, 1),
        "met": {
            "at least 20 MB per CPU second from ids": slowest >= LEAST_MB_PER_SECOND,
            "at most 256 MB": peak <= MOST_MB,
        },
    }


def spread(speeds: Iterable[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of some speeds."""
    found = sorted(speeds)
    middle = statistics.median(found)
    values = {"median": middle, "lowest": found[0], "highest": found[-1]}
    return {name: round(value, 1) for name, value in values.items()}


def peak_memory() -> float:
    """Return the most memory that this process has had, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("this system does not say how much memory a process has had")


def processor() -> str:
    """Return the name of the processor (Linux)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
