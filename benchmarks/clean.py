"""Measure how fast data.clean is, how much memory it needs, and which near-copies it finds.

    python -m benchmarks.clean

The text is 50 MB of the prose and source of installed Python packages, in documents of about 3 kB,
which is a usual length of web pages. A separate process cleans it by all rules, so that its peak of
memory is its own: read JSON Lines, judge each document, search for the items of a set of CORE's
size, compare. What follows for a billion tokens is computed, not run: reading and judging take time
by the byte, and comparing by the document. To know the latter, another process compares as many
made-up signatures as a billion tokens have documents, with a copy of each tenth.

Then near-copies of 20 % of the documents are planted in Python's docs, which were cleaned before,
and looked for at several thresholds. Targets: a billion tokens in at most 2 hours and 2 GB on two
cores; at the threshold that jobs have by default, at least 95 % of the near-copies are found, and
less than 1 % of the rest. Writes benchmarks/results/clean.json.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pion.clean.copies import NONE, SignatureFile, exact_copies, near_copies
from pion.clean.measure import measure
from pion.clean.rules import Verdict
from pion.clean.signature import HASHES
from pipeline.job.clean_section import Clean

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "clean.json"
MEGABYTES, DOCUMENT_BYTES = 50, 3000
ITEMS, ITEM_WORDS = 91_000, 40
BILLION, BYTES_PER_TOKEN = 10**9, 4.5
MOST_HOURS, MOST_GB = 2.0, 2.0
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
PLANTED = 0.2
# Made-up signatures that are written at once.
AT_ONCE = 50_000
JOB = """
name: clean
model: {d_model: 32, n_layers: 1, n_heads: 2, n_kv_heads: 1, d_ff: 64}
tokenizer: {train: {vocab_size: 1024}}
data:
  seq_len: 64
  sources: [{kind: jsonl, path: texts.jsonl}]
  clean:
    min_words: 20
    max_words: 100_000
    max_repetition: 0.3
    languages: [English]
    decontaminate: [evaluate]
pretrain: {steps: 10, global_batch: 4, warmup_steps: 1}
evaluate: {packs: [pack.jsonl]}
"""


def main() -> None:
    """Let other processes measure, plant near-copies, and keep the result."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder))
        cleaned = measured("text", folder)
        tokens = cleaned["megabytes"] * 1e6 / BYTES_PER_TOKEN
        documents = round(cleaned["documents"] * BILLION / tokens)
        compared = measured("signatures", folder, str(documents))
    of_text = cleaned["seconds"]["judge"] * BILLION / tokens
    seconds = cleaned["seconds"]["index"] + of_text + compared["seconds"]
    # As if everything that both processes had was there at the same time.
    memory = (cleaned["peak_megabytes"] + compared["peak_megabytes"]) / 1000
    planted = list(near_copies_found())
    by_default = [one for one in planted if one["threshold"] == Clean().near]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "cores": os.cpu_count(),
        "load_average_before": round(before, 2),
        "text": cleaned,
        "signatures": compared,
        "a_billion_tokens_computed": {
            "bytes_per_token": BYTES_PER_TOKEN,
            "documents": documents,
            "hours": round(seconds / 3600, 3),
            "gigabytes": round(memory, 2),
        },
        "planted_in_python_docs": planted,
        "met": {
            "a billion tokens in at most 2 h": seconds / 3600 <= MOST_HOURS,
            "at most 2 GB": memory <= MOST_GB,
            "at least 95 % found": min(one["found"] for one in by_default) >= 0.95,
            "less than 1 % of the rest": max(one["of_the_rest"] for one in by_default) < 0.01,
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def measured(*arguments: str) -> dict[str, Any]:
    """Return what another process measures."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.clean", *arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---------------------------------------------------------------- text


def write_text(folder: Path) -> None:
    """Write 50 MB of documents, items of which one in 1,000 is cut from the text, and a job."""
    size = 0
    words: list[str] = []
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for document in some_documents():
            file.write(json.dumps({"text": document}) + "\n")
            size += len(document.encode())
            if len(words) < 1_000_000:
                words += document.split()
            if size >= MEGABYTES * 1e6:
                break
        else:
            raise SystemExit(f"the installed packages have only {size / 1e6:.0f} MB of text")
    chance = random.Random(0)
    with open(folder / "pack.jsonl", "w", encoding="utf-8") as file:
        for number in range(ITEMS):
            first = chance.randrange(len(words) - ITEM_WORDS)
            cut = number % 1000 == 0
            some = words[first : first + ITEM_WORDS] if cut else chance.choices(words, k=ITEM_WORDS)
            question, answer = " ".join(some[:-4]), " ".join(some[-4:])
            line = {"context": question, "choices": ["no", f" {answer}"], "answer": 1}
            file.write(json.dumps(line) + "\n")
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")


def some_documents() -> Iterator[str]:
    """Yield parts of the files of installed packages, prose before source."""
    packages = Path(sysconfig.get_path("purelib"))
    for suffix in (".rst", ".md", ".txt", ".py"):
        for path in sorted(packages.rglob(f"*{suffix}")):
            if path.is_file():
                yield from parts(path.read_text(encoding="utf-8", errors="replace"))


def parts(text: str) -> Iterator[str]:
    """Yield a text in parts of whole paragraphs."""
    part = ""
    for paragraph in text.split("\n\n"):
        part += f"{paragraph}\n\n"
        if len(part) >= DOCUMENT_BYTES:
            yield part
            part = ""
    if part.strip():
        yield part


def clean_text(folder: Path) -> dict[str, Any]:
    """Return what this process needs to clean the text, and what it leaves out."""
    from pipeline.console.messages import PrepareProgress, Shown
    from pipeline.data.cleaning.decided import clean
    from pipeline.data.sources import find_input
    from pipeline.job.file import load_job

    job = load_job(folder / "job.yaml")
    began: dict[str, float] = {}

    def say(message: Shown) -> None:
        if isinstance(message, PrepareProgress):
            began.setdefault(message.what, time.perf_counter())

    inputs = [find_input(job, source, key) for key, source in job.sources()]
    start = time.perf_counter()
    cleaned = clean(job, inputs, folder / "clean", say)
    judge, compare = (began[what] for what in ("look for copies and bad text", "compare documents"))
    record, verdicts = cleaned.record, cleaned.verdicts
    # The first report of progress comes after the first batch, so it is counted as the index.
    seconds = {
        "index": judge - start,
        "judge": compare - judge,
        "compare": time.perf_counter() - compare,
    }
    size = sum(record["bytes"]) / 1e6
    return {
        "megabytes": round(size, 1),
        "documents": len(verdicts),
        "items": ITEMS,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "mb_per_second": round(size / seconds["judge"], 1),
        "left_out": {v.words: int(n) for v, n in zip(Verdict, np.bincount(verdicts)) if v and n},
        "peak_megabytes": round(peak_memory(), 1),
    }


# ---------------------------------------------------------------- signatures


def compare_signatures(folder: Path, documents: int) -> dict[str, Any]:
    """Return what this process needs to compare made-up signatures, of which a tenth are copies."""
    numbers = np.random.default_rng(0)
    path = folder / "made_up"
    with open(path, "wb") as file:
        for first in range(0, documents, AT_ONCE):
            some = numbers.integers(
                0, 2**16, (min(AT_ONCE, documents - first), HASHES), dtype=np.uint16
            )
            copies = np.arange(10, len(some), 10)
            some[copies, : HASHES * 3 // 4] = some[copies - 7, : HASHES * 3 // 4]
            file.write(some.tobytes())
    start = time.perf_counter()
    kept = np.ones(documents, dtype=bool)
    found = near_copies(SignatureFile(path, documents), kept, Clean().near or 0.6)
    seconds = time.perf_counter() - start
    return {
        "documents": documents,
        "seconds": round(seconds, 1),
        "found": int(np.count_nonzero(found != NONE)),
        "peak_megabytes": round(peak_memory(), 1),
    }


# ---------------------------------------------------------------- planted near-copies


def near_copies_found() -> Iterator[dict[str, Any]]:
    """Yield, for each change and threshold, the shares of copies and of other texts left out."""
    from pion.data.documents.python_docs import documents
    from tests.support.planted_copies import CHANGES, plant

    texts = [document.text for document in documents()]
    for threshold in THRESHOLDS:
        gone = left_out(texts, threshold)
        cleaned = [text for place, text in enumerate(texts) if place not in gone]
        for change in CHANGES:
            mixed = plant(cleaned, PLANTED, change)
            gone = left_out([text for text, _ in mixed], threshold)
            places = {text: n for n, (text, number) in enumerate(mixed) if number is None}
            # Of a text and its copy, the later one is to go.
            wanted = {
                max(place, places[cleaned[number]])
                for place, (_, number) in enumerate(mixed)
                if number is not None
            }
            yield {
                "threshold": threshold,
                "change": change,
                "planted": len(wanted),
                "found": round(len(wanted & gone) / len(wanted), 4),
                "of_the_rest": round(len(gone - wanted) / len(cleaned), 5),
            }


def left_out(texts: Sequence[str], threshold: float) -> set[int]:
    """Return the places of exact and near copies."""
    own = measure(texts)
    exact = exact_copies(own.hashes, np.ones(len(texts), dtype=bool))
    with tempfile.NamedTemporaryFile() as file:
        file.write(own.signatures.tobytes())
        file.flush()
        signatures = SignatureFile(Path(file.name), len(texts))
        near = near_copies(signatures, exact == NONE, threshold)
    return set(np.flatnonzero((exact != NONE) | (near != NONE)).tolist())


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
    if sys.argv[1:2] == ["text"]:
        print(json.dumps(clean_text(Path(sys.argv[2]))))
    elif sys.argv[1:2] == ["signatures"]:
        print(json.dumps(compare_signatures(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
