"""Compare what a rehearsal says of the data of fifteen jobs with what their `prepare` counts.

    uv run python -m benchmarks.rehearsal_rows [NAME …]

The text is that of Python's standard library, and the conversations ask about it. Each job is
written to a temporary folder, rehearsed, and prepared. A rehearsal reads text of more than 4 MB,
and records of more than 8 MB, only in part: the rows of these jobs are estimated, and those of all
others are exact. In text of both kinds, documentation comes before source code, so that a head is
not like the rest. Writes benchmarks/results/rehearsal.json, which has the rows, steps and tokens of
both, the seconds that each took, and the bytes of all rows on the disk, of which a rehearsal says
nothing. With names, the results of the others are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from benchmarks.exported import TOKENIZER, export_random
from pion.data.documents import python_docs
from pipeline.base.job_with_base import read_job
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.rehearsal.rehearse import rehearse
from pipeline.stages.prepare import prepare_part

RESULTS = Path(__file__).parent / "results" / "rehearsal.json"
MODEL = {
    "vocab_size": 50_000,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 128,
}
PROSE = {"kind": "text", "path": "prose.txt", "split": "paragraph"}

Fields = dict[str, Any]


# ---------------------------------------------------------------- the data


@cache
def prose() -> list[str]:
    """Return 3 MB of documentation, each entry a document."""
    return [document.text for document in python_docs.documents()]


@cache
def code() -> list[str]:
    """Return 12 MB of source code, each file a document."""
    every = python_docs.documents(code=True)
    return [document.text for document in every if document.text not in set(prose())]


def write_lines(path: Path, records: Iterable[Fields]) -> None:
    """Write JSON Lines, packed if the name says so."""
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_prose(folder: Path, texts: Iterable[str] | None = None) -> Fields:
    """Write text whose paragraphs are documents; return the sections of a job that learns it."""
    (folder / "prose.txt").write_text("\n\n".join(prose() if texts is None else texts))
    return {"data": {"sources": [PROSE]}}


def talk(number: int, turns: int = 1, length: int = 400) -> Fields:
    """Return a conversation about entries of the documentation."""
    entries = [prose()[(number + turn) % len(prose())] for turn in range(turns)]
    messages = []
    for entry in entries:
        messages.append({"role": "user", "content": f"{number}: what does {entry[:40]!r} begin?"})
        messages.append({"role": "assistant", "content": entry[:length]})
    return {"messages": messages}


def tuned(folder: Path, talks: Iterable[Fields], **sft: Any) -> Fields:
    """Return the sections of a job that learns conversations after text."""
    write_lines(folder / "talks.jsonl", talks)
    sources = [{"kind": "jsonl", "path": "talks.jsonl"}]
    stage = {"epochs": 2, "global_batch": 8, "seq_len": 512, "sources": sources}
    return write_prose(folder, prose()[:500]) | {"sft": stage | sft}


# ---------------------------------------------------------------- the jobs


def small_text(folder: Path) -> Fields:
    return write_prose(folder, prose()[:1000])


def large_text(folder: Path) -> Fields:
    return write_prose(folder, [*prose(), *code()])


def source_code(folder: Path) -> Fields:
    write_lines(folder / "code.jsonl", ({"text": text} for text in code()))
    return {"data": {"sources": [{"kind": "jsonl", "path": "code.jsonl"}]}}


def packed_text(folder: Path) -> Fields:
    write_lines(folder / "prose.jsonl.gz", ({"text": text} for text in [*prose(), *code()]))
    return {"data": {"sources": [{"kind": "jsonl", "path": "prose.jsonl.gz"}]}}


def parquet(folder: Path) -> Fields:
    table = pyarrow.table({"text": [*prose(), *code()]})
    pyarrow.parquet.write_table(table, folder / "text.parquet", row_group_size=500)
    return {"data": {"sources": [{"kind": "parquet", "path": "text.parquet"}]}}


def documents_apart(folder: Path) -> Fields:
    return {"data": write_prose(folder)["data"] | {"documents": True}}


def mix(folder: Path) -> Fields:
    mixed = [write_prose(folder), source_code(folder)]
    sources = [section["data"]["sources"][0] for section in mixed]
    weighted = [source | {"weight": weight} for source, weight in zip(sources, (3, 1))]
    return {"data": {"sources": weighted}}


def documentation(folder: Path) -> Fields:
    return {"data": {"sources": [{"kind": "python-docs"}]}}


def few_conversations(folder: Path) -> Fields:
    return tuned(folder, map(talk, range(2000)))


def many_conversations(folder: Path) -> Fields:
    return tuned(folder, map(talk, range(40_000)))


def long_conversations(folder: Path) -> Fields:
    return tuned(folder, (talk(n, turns=8, length=2000) for n in range(500)), seq_len=1024)


def low_rank(folder: Path) -> Fields:
    return tuned(folder, map(talk, range(2000)), lora={"rank": 4})


def another_model(folder: Path) -> Fields:
    export_random(folder / "base", quick=True)
    fields = tuned(folder, map(talk, range(2000)))
    return {"model": {"from": "base"}, "tokenizer": None, "pretrain": None, "sft": fields["sft"]}


def preferences(folder: Path) -> Fields:
    pairs = (
        {"prompt": f"{n}: explain.", "chosen": entry[:300], "rejected": prose()[n - 1][:200]}
        for n, entry in enumerate(prose())
    )
    write_lines(folder / "pairs.jsonl", pairs)
    sources = [{"kind": "jsonl", "path": "pairs.jsonl"}]
    stage = {"epochs": 1, "global_batch": 8, "seq_len": 1024, "sources": sources}
    return write_prose(folder, prose()[:500]) | {"prefer": stage}


def rewards(folder: Path) -> Fields:
    questions = ({"prompt": f"What is {n} + {n % 7}?", "answer": n + n % 7} for n in range(3000))
    write_lines(folder / "questions.jsonl", questions)
    sources = [{"kind": "jsonl", "path": "questions.jsonl"}]
    stage = {"steps": 9, "sources": sources, "rewards": ["number"], "max_tokens": 32}
    return write_prose(folder, prose()[:500]) | {"reinforce": stage}


JOBS: tuple[Callable[[Path], Fields], ...] = (
    small_text,
    large_text,
    source_code,
    packed_text,
    parquet,
    documents_apart,
    mix,
    documentation,
    few_conversations,
    many_conversations,
    long_conversations,
    low_rank,
    another_model,
    preferences,
    rewards,
)


# ---------------------------------------------------------------- both sides


def write_job(make: Callable[[Path], Fields], folder: Path) -> Path:
    """Write a job and its data; return its file."""
    fields = make(folder)
    data = {"seq_len": 256, "held_out": 0.01} | fields.pop("data", {})
    job = {
        "name": make.__name__,
        "model": MODEL,
        "tokenizer": {"file": str(TOKENIZER)},
        "data": data,
        "pretrain": {"steps": 100, "global_batch": 8},
        "store": str(folder / "runs"),
        **fields,
    }
    if job["pretrain"] is None:
        del job["data"]
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in job.items() if value is not None}))
    return path


def measured(path: Path, folder: Path) -> dict[str, Any]:
    """Return what the rehearsal says of each stage of a job, and what its `prepare` counts."""
    job, again = read_job(path, []), read_job(path, [])
    begin = time.perf_counter()
    rehearsed = rehearse(job)
    middle = time.perf_counter()
    stages: dict[str, Any] = {}
    tokenizer = path.parent / "base" / "tokenizer.json" if job.base else None
    for stage in digest_job(again).data:
        prepared = prepare_part(again, stage, folder / stage, lambda message: None, tokenizer)
        tokenizer = tokenizer or prepared.folder / "tokenizer.json"
        rows = [source["train_rows"] for source in prepared.report["sources"]]
        data = rehearsed.stages.get(stage)
        again.section(stage).know_rows(sum(rows))
        stages[stage] = {
            "exact": data is not None and data.exact,
            "rows": [None if data is None else list(data.rows), rows],
            "steps": [steps(job, stage), steps(again, stage)],
            "tokens": [job.trained_tokens(stage), again.trained_tokens(stage)],
            "bytes": sum(file.stat().st_size for file in prepared.folder.rglob("*.npy")),
        }
    seconds = {"rehearsal": middle - begin, "prepare": time.perf_counter() - middle}
    return {"seconds": {name: round(taken, 2) for name, taken in seconds.items()}, **stages}


def steps(job: Job, stage: str) -> int | None:
    section = job.section(stage)
    return section.total_steps if section.steps_are_known else None


def show(name: str, result: dict[str, Any]) -> None:
    """Print a line for each stage: the rows that were rehearsed, the real ones, and the error."""
    for stage, row in result.items():
        if stage == "seconds":
            continue
        said, real = (None if rows is None else sum(rows) for rows in row["rows"])
        off = "not rehearsed" if said is None else f"{100 * (said / real - 1):+.1f} %"
        counts = f"{said or 0:>8,} {real:>8,} {off:>14} {'exact' if row['exact'] else '':6}"
        print(f"{name:20} {stage:10} {counts} steps {row['steps']}", flush=True)


def main() -> None:
    """Measure the named jobs, or all, and keep the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [make.__name__ for make in JOBS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    chosen = parser.parse_args().names
    if unknown := set(chosen) - set(names):
        parser.error(f"no job {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for make in JOBS:
        name = make.__name__
        if chosen and name not in chosen:
            continue
        with tempfile.TemporaryDirectory(prefix="pion-rehearsal-rows-") as folder:
            results[name] = measured(write_job(make, Path(folder)), Path(folder, "data"))
        show(name, results[name])
        ordered = {name: results[name] for name in names if name in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
