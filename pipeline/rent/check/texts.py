"""Check that the text of a job gives enough rows, and enough for its vocabulary.

The corpus must fill a batch, and a row of each split, which `prepare` needs. A small corpus is
prepared in a temporary folder. A larger one is judged by the sizes of its files, and not read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pion.data.arrays import open_shard
from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pion.data.shards import Shard, split_tail
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.formats import size
from pipeline.data.foreign_shards import HELD_OUT, check_documents
from pipeline.data.sources import Input, find_input
from pipeline.job import (
    BinShards,
    Job,
    JsonlFiles,
    NpyShards,
    ParquetFiles,
    TextFiles,
)
from pipeline.job.stages import CONVERSING
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared, named_tokenizer
from pipeline.rent.plan.phases import phases_read, prepared_rows, warnings_of
from pipeline.stages.prepare import (
    Prepared,
    check_splits,
    prepare_part,
    require_a_batch,
)

# Texts of more bytes are not prepared here: that would take long.
PREPARED_BYTES = 4_000_000
# An id stands for about so many bytes of text.
BYTES_PER_ID = 4
# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096


def check_corpus(job: Job) -> list[CheckRow]:
    """Check that the corpus on this machine is enough; warn if its size does not tell."""
    if job.pretrain is None:
        return []
    if is_prepared(job):
        return _phases(job, prepared_rows(job))
    try:
        total = text_bytes(job, "data")
    except BadInput:  # the check of the data says it
        return []
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        if total is not None and total <= PREPARED_BYTES:
            return _prepare(job, folder, tokenizer)
        return _judge_by_size(job, tokenizer) + _phases(job, [])


def _phases(job: Job, known: Sequence[int]) -> list[CheckRow]:
    """Show what the phases of pretraining read, and what will probably disappoint."""
    phases = phases_read(job, known)
    rows = [CheckRow(f"phase {n}", True, str(phase)) for n, phase in enumerate(phases, 1)]
    return rows + [CheckRow("phases", None, words) for words in warnings_of(job, phases, known)]


def text_bytes(job: Job, section: str) -> int | None:
    """Return the size of the texts of `data`, `sft`, `prefer` or a source such as `data.sources.0`;
    None if they are not all in uncompressed files."""
    sources = [(k, source) for k, source in job.sources() if f"{k}.".startswith(f"{section}.")]
    if not all(isinstance(s, TextFiles | JsonlFiles | ParquetFiles) for _, s in sources):
        return None
    files = [file for key, source in sources for file in find_input(job, source, key).files]
    if any(file.suffix in (*PACKED_SUFFIXES, *PARQUET_SUFFIXES) for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _prepare(job: Job, folder: Path, tokenizer: Path | None) -> list[CheckRow]:
    """Prepare the corpus, and a few conversations whose vocabulary is trained on it. Return what is
    to be said of these."""
    found = prepare_part(job, "pretrain", folder / "pretrain", lambda message: None, tokenizer)
    rows = _phases(job, [source["train_rows"] for source in found.report["sources"]])
    rows += _said("pretrain", found)
    if job.tokenizer is None or job.tokenizer.train is None:
        return rows  # the checks of conversations and preferences count them
    tokenizer = folder / "pretrain" / "tokenizer.json"
    for stage in [stage for stage in CONVERSING if stage in job.train_stages]:
        talks = text_bytes(job, stage)
        if talks is not None and talks <= PREPARED_BYTES:
            prepared = prepare_part(job, stage, folder / stage, lambda message: None, tokenizer)
            rows += _said(stage, prepared)
    return rows


def _said(stage: str, prepared: Prepared) -> list[CheckRow]:
    """Return what is to be said of the sources of a stage."""
    return [
        CheckRow(f"{stage} data", ok, words)
        for said, ok in (("remarks", True), ("warnings", None))
        for source in prepared.report["sources"]
        for words in source.get(said, ())
    ]


# ---------------------------------------------------------------- a larger corpus


def _judge_by_size(job: Job, tokenizer: Path | None) -> list[CheckRow]:
    """Return a warning if the sizes of the files leave it open whether the corpus is enough.

    Raises BadInput if the corpus is surely too small: an id stands for at least one byte.
    """
    assert job.pretrain is not None
    seq_len, batch, held_out = job.data.seq_len, job.pretrain.global_batch, job.data.held_out
    most = about = 0
    known, unsure = True, []
    for number, source in enumerate(job.data.sources):
        key = f"data.sources.{number}"
        if isinstance(source, NpyShards | BinShards):
            exactly = _rows_of_shards(job, find_input(job, source, key), tokenizer)
            most, about = most + exactly, about + exactly
        elif (total := text_bytes(job, key)) is None:
            known = False
        else:
            most, about = most + total // seq_len, about + total // BYTES_PER_ID // seq_len
            if min(held_out, 1 - held_out) * total < BYTES_PER_ID * seq_len:
                unsure.append(f"{key}: it is not known whether both splits fill a row")
    if known:
        require_a_batch(most, batch, "pretrain", seq_len)
    if known and about < batch:
        unsure.append(f"it is not known whether the corpus fills a batch of {batch:,} rows")
    told = f"of {seq_len:,} ids. Its files have about {about:,} rows, at {BYTES_PER_ID} bytes an id"
    rows = [CheckRow("corpus", None, f"{words} {told}. {_EXACT}") for words in unsure]
    if job.data.clean is not None:
        words = f"rows were estimated before data.clean leaves out documents. {_EXACT}"
        rows.append(CheckRow("corpus", None, words))
    return rows


def _rows_of_shards(job: Job, found: Input, tokenizer: Path | None) -> int:
    """Return the training rows of shards. Raises BadInput if a split has none, or if a row does not
    show where a document begins and the job needs that."""
    seq_len, path = job.data.seq_len, tokenizer or named_tokenizer(job)
    if path is not None and job.within_documents:
        check_documents([found], Tokenizer.from_file(path), seq_len)
    # Only their rows count here, so nothing is hashed.
    shards = [
        Shard("shard", len(open_shard(file, seq_len)), sha256="0" * 64, bytes=0, dtype="int64")
        for file in found.files
    ]
    train, held_out = (sum(s.rows for s in part) for part in split_tail(shards, HELD_OUT))
    report = {"train_rows": train, "held_out_rows": held_out}
    check_splits(report, found, seq_len, job.data.held_out)
    return train


_EXACT = "`pion run JOB --until prepare` counts exactly, and trains nothing"


# ---------------------------------------------------------------- the vocabulary


def check_vocabulary(job: Job) -> list[CheckRow]:
    """Warn of a vocabulary that is to be trained on too little text."""
    train = None if job.tokenizer is None else job.tokenizer.train
    if train is None or is_prepared(job):
        return []
    try:
        total = text_bytes(job, "data")
    except BadInput:  # the check of the data says it
        return []
    if total is None:
        return []
    read = min(total, int(train.max_mb * 1e6))
    most = max(FEW_ENTRIES, read // BYTES_PER_ENTRY)
    if train.vocab_size <= most:
        return []
    return [
        CheckRow(
            "vocabulary",
            None,
            f"{train.vocab_size:,} entries are more than one for each kilobyte of text: they are "
            f"trained on {size(read)}. Entries that occur a few times are never learned well, and "
            f"each has a row of the model. Add text, or set tokenizer.train.vocab_size={most}",
        )
    ]
