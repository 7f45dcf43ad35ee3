"""Measure how fast training rows are searched for the items of evaluation sets, on one core.

    python -m benchmarks.overlap

The text is the prose and the source of Python's standard library, in rows of 1,024 tokens. What is
looked for has the size of CORE's 22 sets with their controls: 3.5 million n-grams, of made-up items
with words of the same text. One item in 100 is cut from the text, so it is found. By turns:

  * `text`: the rows are bytes already;
  * `ids`: the rows are token ids, which are turned into bytes first (as in a run);
  * `bytes of ids`: only that.

A separate process measures, bound to one core, so that its peak of memory is its own: interpreter,
numpy, the items' texts, the index and the search. Targets: at least 20 MB/s of text, at most
256 MB. Writes benchmarks/results/overlap.json.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.overlap.found import nothing_found
from pion.evaluation.overlap.index import build_index
from pion.evaluation.overlap.items import Item, ItemSet
from pion.evaluation.overlap.search import search
from pion.evaluation.overlap.token_text import row_texts, token_texts

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "overlap.json"
TOKENIZER = ROOT / "jobs" / "pile_tokenizer.json"
SETS, ITEMS, ITEM_WORDS, SEQ_LEN, ROUNDS = 22, 125_000, 40, 1024, 9
PLANTED = 100  # one item in so many is cut from the text
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
    """Write the standard library's text, and its ids in rows."""
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


def measure(folder: Path) -> dict[str, Any]:
    """Return speeds and memory of this process, which nothing else has used."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began = time.perf_counter()
    index = build_index(some_sets(folder / "text"))
    seconds = time.perf_counter() - began
    texts = token_texts(Tokenizer.from_file(TOKENIZER))
    ids = np.load(folder / "rows.npy", mmap_mode="r")
    rows = list(row_texts(ids, texts))
    size = sum(map(len, rows))

    def by_text() -> None:
        found = nothing_found(index)
        search(index, enumerate(rows), found)
        counts.append(int(found.overlapped(index).sum()))

    def by_ids() -> None:
        found = nothing_found(index)
        search(index, enumerate(row_texts(ids, texts)), found)
        counts.append(int(found.overlapped(index).sum()))

    def only_bytes() -> None:
        for _ in row_texts(ids, texts):
            pass

    counts: list[int] = []
    works: dict[str, Callable[[], None]] = {
        "text": by_text,
        "ids": by_ids,
        "bytes of ids": only_bytes,
    }
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            speeds[name].append(size / 1e6 / (time.perf_counter() - began))
    if len(set(counts)) != 1:
        raise SystemExit(f"the searches found different numbers of items: {set(counts)}")
    peak = peak_memory()
    fast = statistics.median(speeds["ids"])
    return {
        "megabytes_of_text": round(size / 1e6, 1),
        "rows": len(rows),
        "items": sum(len(s.items) for s in index.sets),
        "ngrams": len(index.hashes),
        "overlapped_items": counts[0],
        "index_seconds": round(seconds, 1),
        "mb_per_second": {
            name: {
                "median": round(statistics.median(found), 1),
                "lowest": round(min(found), 1),
                "highest": round(max(found), 1),
            }
            for name, found in speeds.items()
        },
        "rounds": ROUNDS,
        "million_tokens_per_second": round(ids.size / (size / 1e6 / fast) / 1e6, 2),
        "peak_megabytes": round(peak, 1),
        "of_these_megabytes_of_rows": round(size / 1e6, 1),
        "met": {
            "at least 20 MB/s from ids, slowest round": min(speeds["ids"]) >= LEAST_MB_PER_SECOND,
            "at most 256 MB, without the rows": peak - size / 1e6 <= MOST_MB,
        },
    }


def some_sets(path: Path) -> list[ItemSet]:
    """Return the sets: items of random words of the text, and a few that are in the text."""
    chance = random.Random(0)
    words = path.read_bytes()[:8_000_000].decode(errors="ignore").split()

    def item(number: int) -> Item:
        if number % PLANTED == 0:
            first = chance.randrange(len(words) - ITEM_WORDS)
            chosen = words[first : first + ITEM_WORDS]
        else:
            chosen = chance.choices(words, k=ITEM_WORDS)
        return Item(" ".join(chosen[:-4]), " ".join(chosen[-4:]))

    def some() -> Iterator[ItemSet]:
        for number in range(SETS):
            count = ITEMS // SETS
            yield ItemSet(f"set {number}", [item(n) for n in range(count)])

    return list(some())


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
