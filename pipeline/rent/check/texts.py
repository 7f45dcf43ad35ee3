"""Check that the texts of a job give enough rows: its corpus, its vocabulary, its conversations.

The corpus must fill a batch, and a row of each split, which `prepare` needs. A small corpus is
prepared in a temporary folder. Of a larger one, only so much is read until it is enough: a batch of
training rows, and a row of each split of each source. Where the vocabulary is still to be trained,
the rows are not known: a word gives at least one token, and a byte at most one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pion.data.arrays import open_shard
from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pion.data.shards import Shard, split_tail
from pion.data.tokens.tokenizer import Tokenizer, count_words
from pion.errors import BadInput
from pipeline.base.find import find_base
from pipeline.base.keep import is_pinned, tokenizer_of_base
from pipeline.console.formats import size
from pipeline.console.messages import Shown
from pipeline.data.encode_piece import batches
from pipeline.data.foreign_shards import HELD_OUT, check_documents
from pipeline.data.sources import Input, find_input, texts
from pipeline.job import (
    BinShards,
    HubDataset,
    HubNpyShards,
    Job,
    JsonlFiles,
    NpyShards,
    ParquetFiles,
    TextFiles,
)
from pipeline.job.stages import CONVERSING
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared, named_tokenizer
from pipeline.rent.plan import conversations, preferences
from pipeline.rent.plan.counted import Counted, count
from pipeline.stages.prepare import (
    check_splits,
    prepare_part,
    require_a_batch,
)

if TYPE_CHECKING:
    from torch import Tensor

# Texts of more bytes are not prepared here: that would take long.
PREPARED_BYTES = 4_000_000
# How long a larger corpus is read.
SECONDS = 8.0
# Documents are encoded in batches of about so many characters.
BATCH_CHARS = 1 << 18
# Entries that occur a few times are never learned well: see docs/sizing.md.
BYTES_PER_ENTRY = 1000
# So many entries do no harm, however little text there is.
FEW_ENTRIES = 4096
# The names of the embedding in files of transformers and of Pion.
EMBEDDINGS = ("model.embed_tokens.weight", "embed.weight")


def check_corpus(job: Job) -> list[CheckRow]:
    """Check that the corpus on this machine is enough; warn if that can't be found out soon."""
    if job.pretrain is None or is_prepared(job):
        return []
    try:
        total = text_bytes(job, "data")
    except BadInput:  # the check of the data says it
        return []
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        if total is not None and total <= PREPARED_BYTES:
            return _prepare(job, folder, tokenizer)
        return _read_until_enough(job, tokenizer)


def text_bytes(job: Job, section: str) -> int | None:
    """Return the size of the texts of `data`, `sft` or `prefer`; None if they are not all in
    uncompressed files."""
    sources = [(key, source) for key, source in job.sources() if key.startswith(f"{section}.")]
    if not all(isinstance(s, TextFiles | JsonlFiles | ParquetFiles) for _, s in sources):
        return None
    files = [file for key, source in sources for file in find_input(job, source, key).files]
    if any(file.suffix in (*PACKED_SUFFIXES, *PARQUET_SUFFIXES) for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def _prepare(job: Job, folder: Path, tokenizer: Path | None) -> list[CheckRow]:
    """Prepare the corpus, and a few conversations whose vocabulary is trained on it. Return what is
    to be said of these."""

    def nobody(message: Shown) -> None:
        """Hear nothing of how it proceeds."""

    prepare_part(job, "pretrain", folder / "pretrain", nobody, tokenizer)
    if job.tokenizer is None or job.tokenizer.train is None:
        return []  # the checks of conversations and preferences count them
    rows = []
    tokenizer = folder / "pretrain" / "tokenizer.json"
    for stage in CONVERSING:
        if stage in job.train_stages:
            talks = text_bytes(job, stage)
            if talks is not None and talks <= PREPARED_BYTES:
                report = prepare_part(job, stage, folder / stage, nobody, tokenizer).report
                for said, ok in (("remarks", True), ("warnings", None)):
                    words = [w for source in report["sources"] for w in source.get(said, ())]
                    rows += [CheckRow(f"{stage} data", ok, w) for w in words]
    return rows


# ---------------------------------------------------------------- a larger corpus


@dataclass
class _Rows:
    """The rows of both splits of a source: at least, and at most. `whole`: all of it was read."""

    train: tuple[int, int] = (0, 0)
    held_out: tuple[int, int] = (0, 0)
    whole: bool = False
    bytes: int = 0

    def enough(self, train_rows: int) -> bool:
        return self.train[0] >= train_rows and self.held_out[0] >= 1


def _read_until_enough(job: Job, tokenizer: Path | None) -> list[CheckRow]:
    """Count rows until there are enough of them.

    Raises BadInput if there are too few in all.
    """
    assert job.pretrain is not None
    seq_len, batch = job.data.seq_len, job.pretrain.global_batch
    path = tokenizer or named_tokenizer(job)
    loaded = None if path is None else Tokenizer.from_file(path)
    end = time.monotonic() + SECONDS
    least = most = 0
    on_hub = any(isinstance(source, HubDataset | HubNpyShards) for source in job.data.sources)
    rows, known = [], not on_hub
    for number, source in enumerate(job.data.sources):
        if isinstance(source, HubDataset | HubNpyShards):
            continue
        found = find_input(job, source, f"data.sources.{number}")
        if loaded is not None and job.within_documents:
            check_documents([found], loaded, seq_len)
        counted = _count(job, found, loaded, max(1, batch - least), end)
        if counted.whole:
            report = {"train_rows": counted.train[1], "held_out_rows": counted.held_out[1]}
            check_splits(report, found, seq_len, job.data.held_out)
        if not counted.enough(1):
            rows.append(_unsure(found, counted, seq_len))
        known = known and counted.whole
        least, most = least + counted.train[0], most + counted.train[1]
    if known:
        require_a_batch(most, batch, "pretrain", seq_len)
    if job.data.clean is not None:
        words = f"rows were counted before data.clean leaves out documents. {_EXACT}"
        rows.append(CheckRow("corpus", None, words))
    if least < batch and not rows and not on_hub:
        words = (
            f"it was not found out whether the corpus fills a batch of {batch:,} rows of "
            f"{seq_len:,} ids: the part that was read has at least {least:,} rows. {_EXACT}"
        )
        rows.append(CheckRow("corpus", None, words))
    return rows


_EXACT = "`pion run JOB --until prepare` counts exactly, and trains nothing"


def _unsure(found: Input, counted: _Rows, seq_len: int) -> CheckRow:
    part = "all of it was" if counted.whole else f"the first {size(counted.bytes)} were"
    words = (
        f"{found.key}: it was not found out whether both splits fill a row of {seq_len:,} ids: "
        f"{part} read, with at least {counted.train[0]:,} rows to train on and "
        f"{counted.held_out[0]:,} held out. {_EXACT}"
    )
    return CheckRow("corpus", None, words)


def _bounds(batch: list[str], tokenizer: Tokenizer | None) -> list[tuple[int, int]]:
    """Return the least and the most tokens of each text: exactly, unless the vocabulary is to be
    trained."""
    if tokenizer is None:
        return list(zip(count_words(batch), (len(text.encode()) for text in batch), strict=True))
    start = tokenizer.start_document
    counts = [len(start(ids)) if ids else 0 for ids in tokenizer.encode_batch(batch)]
    return list(zip(counts, counts, strict=True))


def _count(
    job: Job, found: Input, tokenizer: Tokenizer | None, train_rows: int, end: float
) -> _Rows:
    """Count the rows of a source until there are `train_rows` and a held-out row, or until `end`,
    a time of the monotonic clock."""
    seq_len = job.data.seq_len
    if isinstance(found.source, NpyShards | BinShards):
        # Only their rows count here, so nothing is hashed.
        shards = [
            Shard("shard", len(open_shard(file, seq_len)), sha256="0" * 64, bytes=0, dtype="int64")
            for file in found.files
        ]
        train, held_out = (sum(s.rows for s in part) for part in split_tail(shards, HELD_OUT))
        return _Rows((train, train), (held_out, held_out), whole=True)
    rows = _Rows()
    ids = {False: [0, 0], True: [0, 0]}
    for batch in batches(texts(job, found), BATCH_CHARS):
        for (held_out, text), (least, most) in zip(
            batch, _bounds([text for _, text in batch], tokenizer)
        ):
            rows.bytes += len(text.encode())
            if most:  # an end-of-text follows
                ids[held_out][0] += least + 1
                ids[held_out][1] += most + 1
        rows.train, rows.held_out = ((a // seq_len, b // seq_len) for a, b in ids.values())
        if rows.enough(train_rows) or time.monotonic() > end:
            return rows
    rows.whole = True
    return rows


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
    words = (
        f"{train.vocab_size:,} entries are more than one for each kilobyte of text: they are "
        f"trained on {size(read)}. Entries that occur a few times are never learned well, and each "
        f"has a row of the model. Add text, or set tokenizer.train.vocab_size={most}"
    )
    return [CheckRow("vocabulary", None, words)]


# ---------------------------------------------------------------- conversations


def check_conversations(job: Job) -> list[CheckRow]:
    """Show what the conversations give. Raises BadInput for conversations that can't be used."""
    if job.sft is None or is_prepared(job):
        return []
    counted = count(job, "sft")
    if counted is None:
        return []
    job.section("sft").know_rows(counted.rows)
    said = conversations.in_words(job, counted)
    rows = _shown("conversations", said, counted, conversations.warnings_about(job, counted))
    return [*rows, *_untrained(job, counted.specials)]


def check_preferences(job: Job) -> list[CheckRow]:
    """Show what the preferences give. Raises BadInput for preferences that can't be used."""
    if job.prefer is None or is_prepared(job):
        return []
    counted = count(job, "prefer")
    if counted is None:
        said, rate = "\n".join(preferences.unencoded_in_words(job)), preferences.high_rate(job)
        high = [] if rate is None else [CheckRow("rate", None, rate)]
        return [CheckRow("preferences", True, said), *high]
    job.section("prefer").know_rows(counted.rows)
    said = "\n".join(preferences.in_words(job, counted))
    preferences.require_first(counted)
    rows = _shown("preferences", said, counted, preferences.warnings_about(job, counted))
    return [*rows, *([] if job.sft is not None else _untrained(job, counted.specials))]


def _shown(name: str, said: str, counted: Counted, warnings: Mapping[str, str]) -> list[CheckRow]:
    return [
        CheckRow(name, True, said),
        *(CheckRow(name, None, words) for words in counted.warnings),
        *(CheckRow(short, None, words) for short, words in warnings.items()),
        CheckRow("the first", True, counted.first_in_words()),
    ]


def _untrained(job: Job, specials: dict[int, str]) -> list[CheckRow]:
    """Return a warning if LoRA can't teach the model these special tokens."""
    if job.base is None or job.lora(job.train_stages[0]) is None:
        return []
    if job.base.commit is not None or is_pinned(job, job.base):
        return []  # the weights may be elsewhere, and the run says the same when training starts
    from pion.evaluation.untrained_rows import never_stops

    found = find_base(job.base.source, job.folder)
    embedding = _embedding([found.bring(n) for n in found.files if n.endswith(".safetensors")])
    words = None if embedding is None else never_stops(embedding, specials)
    return [] if words is None else [CheckRow("end of turn", None, words)]


def _embedding(files: list[Path]) -> Tensor | None:
    """Return the embedding of a model, without reading the other tensors."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in set(EMBEDDINGS).intersection(file.keys()):
                return cast("Tensor", file.get_tensor(name))
    return None
