"""Small corpora and jobs to prepare, and functions that read the result."""

import hashlib
import json
import random
import re
from collections.abc import Callable
from functools import partial

import pytest
import yaml

from pion.data.shards import Rows
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pipeline.console.messages import Shown
from pipeline.data.source_reading import PrepareOptions
from pipeline.job.file import load_job
from pipeline.stages.prepare import open_data, prepare_part

SEQ_LEN = 32
WORDS = re.findall(
    r"\w+",
    """the a river mountain quietly runs over under small green stone house with many windows and
    children who sing while old trees whisper about winter bread maps letters ships""",
)


def sentences(seed, count):
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(5, 14))).capitalize() for _ in range(count)]
    return ". ".join(made) + "."


def write_corpus(path, documents=300):
    """Write a JSONL corpus of `documents` short texts."""
    lines = (json.dumps({"text": sentences(i, 6)}) + "\n" for i in range(documents))
    path.write_text("".join(lines))
    return path


def make_job(folder, **sections):
    """Write a job file that trains a tokenizer on corpus.jsonl in `folder`; replace sections."""
    fields = {
        "name": "test",
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64},
        "tokenizer": {"train": {"vocab_size": 400}},
        "data": {
            "seq_len": SEQ_LEN,
            "shard_rows": 100,
            "held_out": 0.1,
            "sources": [{"kind": "jsonl", "path": "corpus.jsonl"}],
        },
        "pretrain": {"steps": 10, "global_batch": 4, "warmup_steps": 1},
    }
    for name, section in sections.items():
        replaced = isinstance(section, dict) and name == "data"
        fields[name] = fields[name] | section if replaced else section
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if v is not None}))
    return load_job(path)


def prepare(
    job, folder, say: Callable[[Shown], object] = lambda message: None, part="pretrain", **options
):
    """Prepare a part of the job's data, with these PrepareOptions."""
    return prepare_part(job, part, folder, say, how=PrepareOptions(**options))


def prepared(job, folder):
    prepare(job, folder)
    return open_data(folder)


def job_by_file(folder, **sections):
    """Return a job with a tokenizer that it has."""
    save_tokenizer(folder / "tokenizer.json")
    usual = {"tokenizer": {"file": "tokenizer.json"}, "model": model_of(400)}
    return make_job(folder, **(usual | sections))


def files_of(folder):
    """Return the sha256 of every file, except files with measured times."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "dataset.json"
    }


def shard_path(folder, shard):
    return folder / shard.name


def texts_of(data, split):
    """Return the documents in a split's rows, in order. The last may be cut."""
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    texts = []
    for source in data.sources:
        manifest = data.manifest(source, split)
        rows = Rows(manifest, partial(shard_path, data.folder / source.folder / split))
        ids = [
            int(i)
            for shard, count in enumerate(manifest.shard_rows)
            for row in range(count)
            for i in rows.row(shard, row).tokens
        ]
        text = tokenizer.decode(ids, specials=True)
        texts += text.split(tokenizer.end_of_text_token)
    return texts


def save_tokenizer(path, vocab_size=400):
    tokenizer = train_bpe([sentences(i, 6) for i in range(50)], vocab_size)
    tokenizer.save(path)
    return tokenizer


def model_of(vocab_size):
    shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64}
    return shape | {"vocab_size": vocab_size}


def interrupt_after_shards(job, folder, shards):
    """Stop, as Ctrl-C does between two batches, once there are so many shards."""
    import pipeline.data.encode_piece as encoding

    class Stop(Exception):
        pass

    def say(message):
        if len(list(folder.rglob("shard_*.json"))) >= shards:
            raise Stop

    before, encoding.BATCH_CHARS = encoding.BATCH_CHARS, 20_000
    try:
        with pytest.raises(Stop):
            prepare_part(job, "pretrain", folder, say)
    finally:
        encoding.BATCH_CHARS = before


def npy_job(folder, **source):
    return job_by_file(folder, data={"sources": [source or {"kind": "npy", "path": "shards"}]})
