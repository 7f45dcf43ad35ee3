"""Corpora whose rows are known: each kind of source with what a cut into pieces could get wrong.

`python -m tests.support.piece_corpora` prints the rows' hashes of the code that is installed. Those
in tests/fixtures/pieces/golden.json are of the code before there were pieces (32edc3ee), but for
one_file and paragraphs, whose line ends of Windows are plain since then. With the
argument TIMES, each corpus has megabytes. Digests of its shards, by the same code, are in
golden_large.json.
"""

import gzip
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from pion.data.documents import file_to_documents
from pipeline.data import conversations_to_rows
from pipeline.data.prepared import SPLITS
from pipeline.stages.prepare import open_data, prepare_part
from tests.paths import TESTS
from tests.support.corpora import make_job, model_of, sentences

PIECES = TESTS / "fixtures" / "pieces"
# Instead of 4 MiB, so that small files have many parts; and instead of 16,384 conversations.
PART_BYTES, BUFFER = 4096, 16
TIMES = 32
LONG = "\n".join(sentences(9000 + i, 6) for i in range(200))
BOM = "\ufeff"


def _texts(first, count, times=1):
    """Return texts of very different lengths: some blank, one longer than 64K characters; and so
    many times as many."""
    return [text for n in range(times) for text in _some_texts(first + 10_000 * n, count)]


def _some_texts(first, count):
    rng = random.Random(first)
    texts = [sentences(first + i, rng.randint(1, 12)) for i in range(count)]
    texts[3], texts[5], texts[7] = " \n ", "", "Übergröße – 統一碼 🙂 " * 40
    texts[count // 2] = LONG
    return texts


def _lines(texts, end="\n"):
    return "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=False) + end for text in texts)


def jsonl(folder, times=1):
    """Lines with and without CR, blank lines, byte order marks, half a character, no last break."""
    one = BOM + _lines(_texts(0, 40, times)) + "\n \n\r\n"
    one += _lines(_texts(100, 20, times), "\r\n")
    one += '{"text": "broken \\ud83d emoji"}\n' + BOM + _lines(_texts(200, 10, times))
    (folder / "a.jsonl").write_text(one)
    (folder / "b.jsonl").write_text("")
    (folder / "c.jsonl").write_text(_lines(_texts(300, 60, times)).rstrip("\n"))
    return {"kind": "jsonl", "path": "*.jsonl"}


def gz(folder, times=1):
    """Compressed files: one of a single line, others of many."""
    many = [(f"b{n:02}"[: 3 if n else 1], _texts(400 + 10_000 * n, 80)) for n in range(times)]
    for name, texts in (("a", [LONG]), *many, ("c", ["x y z"])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wb") as file:
            file.write(_lines(texts).encode())
    return {"kind": "jsonl", "path": "."}


def one_file(folder, times=1):
    """A text file of many parts: blank lines, CR, and a line longer than a part."""
    texts = _texts(500, 60, times)
    text = BOM + "\n\n".join(texts) + "\r\n\r\n" + "\r\n".join(texts[:20]) + "\n" + "word " * 4000
    (folder / "book.txt").write_bytes((text + "\n" + "\n".join(texts)).encode())
    (folder / "exact.txt").write_bytes((b"four and a half\n" * 1024)[: 3 * PART_BYTES])
    return {"kind": "text", "path": "."}


def paragraphs(folder, times=1):
    """The same, and each paragraph is a document."""
    return one_file(folder, times) | {"split": "paragraph"}


def many_files(folder, times=1):
    """Small files, some of them empty."""
    for number, text in enumerate(_texts(600, 90, times)):
        (folder / f"{number:03}.md").write_text(text)
    return {"kind": "text", "path": "."}


def parquet(folder, times=1):
    """Tables of several groups of rows, one of them empty."""
    for name, count, rows in (("a", 70, 9), ("b", 30, 1000)):
        texts = _texts(700 + count, count, times)
        table = pyarrow.table({"n": list(range(len(texts))), "text": texts})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=rows)
    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, folder / "ab.parquet")
    return {"kind": "parquet", "path": "*.parquet"}


KINDS = {
    function.__name__: function
    for function in (jsonl, gz, one_file, paragraphs, many_files, parquet)
}


def corpus_job(kind, folder, *, sft=False, times=1):
    """Write the corpus of a kind into `folder` and return its job; or conversations. `times` as
    much."""
    (folder / "tokenizer.json").write_bytes((PIECES / "tokenizer.json").read_bytes())
    shared = {"tokenizer": {"file": "tokenizer.json"}, "model": model_of(400)}
    shard_rows = 40 * min(times, 10)
    if sft:
        (folder / "talks.jsonl").write_text(_talks(150 * times))
        sources = [{"kind": "jsonl", "path": "talks.jsonl"}]
        sft_section = {
            "sources": sources, "steps": 2, "global_batch": 4, "seq_len": 64, "held_out": 0.2,
        }  # fmt: skip
        return make_job(folder, data={"shard_rows": 40}, sft=sft_section, **shared)
    (folder / "text").mkdir(exist_ok=True)
    source = KINDS[kind](folder / "text", times)
    source["path"] = f"text/{source['path']}"
    return make_job(folder, data={"sources": [source], "shard_rows": shard_rows}, **shared)


def _talks(count):
    rng = random.Random(1)
    talks = []
    for number in range(count):
        turns = [
            {"role": role, "content": sentences(5000 + 7 * number + place, rng.randint(1, 5))}
            for place, role in enumerate(("user", "assistant") * rng.randint(1, 3))
        ]
        talks.append(json.dumps({"messages": turns}) + "\n")
    return "".join(talks)


def hashes_of(folder):
    """Return the sha256 of all shards, flags and manifests of prepared data."""
    paths = sorted([*folder.rglob("*.npy"), *folder.rglob("manifest.json")])
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if "pieces" not in path.parts
    }


def change_piece(folder, number, counts=None, columns=None, **changes):
    """Change what was kept of a piece of the rows in `folder`: its record, the counts in it, and
    columns."""
    path = folder / "pieces" / f"{number:06}.npz"
    with np.load(path) as file:
        kept = dict(file)
    record = json.loads(str(kept["record"]))
    record |= {"counts": record["counts"] | (counts or {})} | changes
    np.savez(path, **kept | (columns or {}) | {"record": json.dumps(record)})


def digest_of(hashes):
    """Return a digest of the names and hashes of shards."""
    shards = sorted(item for item in hashes.items() if item[0].endswith(".npy"))
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def result_of(job, folder):
    """Return the hashes of the data that a job has prepared in `folder`, and what was counted."""
    (source,) = open_data(folder).report["sources"]
    names = ("thoughts", "lost_thoughts", "lost_tools", "fits")
    later = (f"{split}_{name}" for split in SPLITS for name in names)  # not in the golden code
    apart = ("mb_per_second", "name", "remarks", "warnings", *later)
    return {
        "hashes": hashes_of(folder),
        "counted": {name: value for name, value in source.items() if name not in apart},
    }


def main():
    """Print what this code makes of each corpus."""
    file_to_documents.PART_BYTES, conversations_to_rows.BUFFER = PART_BYTES, BUFFER
    found = {}
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for kind in (*KINDS, "sft"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job = corpus_job(kind, folder, sft=kind == "sft", times=times)
            part = "sft" if kind == "sft" else "pretrain"
            prepare_part(job, part, folder / "data", lambda message: None)
            found[kind] = result_of(job, folder / "data")
            if times > 1:
                found[kind] = digest_of(found[kind]["hashes"])
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
