"""Prompts to rows, one of each, and next to these a file with what rewards get of each prompt; and
both by the number of a training row.

After an interruption, all records are read again, and the shards that are finished are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, product
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.data.arrays import open_npy
from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.documents import python_docs
from pion.data.preference.rendering import is_held_out
from pion.data.prompt.layouts import Question, parse_question
from pion.data.prompt.rendering import Asked, EncodedPrompts, prompt_ids, rows_of
from pion.data.records.fields import EVERY
from pion.data.records.layouts import read_conversation
from pion.data.row_flags import PADDING
from pion.data.shards import Manifest, flags_path
from pion.errors import BadInput
from pion.files import sha256_file, write_atomically
from pion.rewards.builtin import unjudgeable
from pion.untrusted import open_file, parse_json
from pipeline.console.formats import beginning
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.piece_rows import NAMED, require_usable
from pipeline.data.prepared import SPLITS, PreparedData
from pipeline.data.remarks import Remarks
from pipeline.data.source_reading import SourceReading
from pipeline.data.sources import (
    Input,
    Shown,
    conversations,
    held_out_by_sft,
    parsed,
    texts_of,
)
from pipeline.data.splits import RowFormat, Splits
from pipeline.job import Job, PythonDocsQA
from pipeline.machine.time_limit import attended_items

if TYPE_CHECKING:
    from pion.data.stream import RowStream

# The file next to the shards of a split: a JSON object for each row, in their order.
RECORDS = "records.jsonl"
# So many prompts are read, and rows written, at once.
BUFFER = 256


def questions(
    job: Job, found: Input, remarks: Remarks | None = None, *, own: bool = True
) -> Iterator[Asked]:
    """Yield every record of a source, and note it in `remarks`.

    Of a data set on the Hub, records after the first SAMPLED may be unusable. Questions about the
    standard library are held out with the files that pretraining holds out, and records that
    fine-tuning learns from by the hash of what it reads (in Pion's `own` chat format, or not).
    Raises BadInput for a source that can't be read, and for other records without a prompt.
    """
    if isinstance(found.source, PythonDocsQA):
        for held_out, talk in conversations(job, found, own=True):
            conversation = talk.conversation
            assert not isinstance(conversation, str)
            yield (
                parse_question({"messages": conversation.messages}, conversation.where),
                True,
                held_out,
            )
        return
    share, taught = job.conversations("reinforce").held_out, held_out_by_sft(job, found.source)

    def parse(value: Any, where: str) -> tuple[Question, bool | None]:
        question = parse_question(value, where)
        with suppress(BadInput):  # of fine-tuning, which then does not learn from this one
            if taught:
                texts = texts_of(read_conversation(value, where, own=own), own=own)
                return question, python_docs.is_held_out("\n".join(texts), share)
        return question, None

    for record, made, required in parsed(job, found, parse, remarks, EVERY):
        question, by_sft = (made, None) if isinstance(made, str) else made
        if isinstance(question, Question) and remarks is not None:
            prompt = question.conversation
            remarks.note(prompt.seen, [prompt.messages, prompt.tools], record.origin)
        yield question, required, by_sft if record.held_out is None else record.held_out


def show_prompt(job: Job, record: Asked, written: ChatFormat) -> Shown | None:
    """Return what the model sees of a prompt, and the right answer; None if it is not usable."""
    question, _, _ = record
    if not isinstance(question, Question):
        return None
    ids = prompt_ids(written, question)
    lines = [marked_text(written.tokenizer, Tokenized(np.array(ids), np.zeros(len(ids), bool)))]
    if question.answer is not None:
        lines.append(f"right answer: {beginning(str(question.answer), 200)}")
    return lines, ids


def write_prompts(
    reading: SourceReading, written: ChatFormat, folder: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Write the rows of both splits below `folder`, each with its manifest and RECORDS; return what
    was counted.

    Raises BadInput if a file can't be written, for a prompt that must be usable and is not, for
    more than MOST_REFUSED of others, and if more than half of the prompts are too long.
    """
    job, source_input, tokenizer = reading.job, reading.found, written.tokenizer
    assert job.reinforce is not None
    share, longest = job.reinforce.held_out, min(rows.seq_len, job.model_config_resolved().seq_len)
    # The rest of a row is for an answer.
    rows = replace(rows, seq_len=longest - job.reinforce.max_tokens)
    remarks = Remarks(tokenizer.replaced(), source_input.left_out)
    by_prompt = partial(is_held_out, share=share, seed=job.seed)
    prompts = EncodedPrompts(written, rows.seq_len, int(tokenizer.token_bytes().max()), by_prompt)

    def look() -> None:
        say(PrepareProgress(f"write {source_input.key}", prompts.read, "prompts"))

    judgeable = (
        _judgeable(job, question)
        for question in questions(job, source_input, remarks, own=written.own)
    )
    buffers = iter(lambda: list(islice(judgeable, BUFFER)), [])
    for _ in attended_items(map(prompts.add, buffers), look):
        look()
    refusals = prompts.refusals
    require_usable("prompts", len(refusals), prompts.read, refusals, f"{source_input.key}: ")
    warnings = _warnings(job, prompts)
    if prompts.too_long > prompts.read / 2:
        raise BadInput(f"{source_input.key}: {warnings[0]}. Nothing was trained")
    splits = Splits(folder, rows, tokenizer.vocab_size, flags=True)
    manifests = _write(prompts, splits, folder, tokenizer.pad)
    # With the names that the reports of conversations have.
    return {
        **{f"{split}_rows": manifest.rows for split, manifest in manifests.items()},
        **{
            f"{split}_tokens": sum(len(ids) for ids, _ in rows_of_split)
            for split, rows_of_split in zip(SPLITS, prompts.kept.values(), strict=True)
        },
        "train_refused": len(refusals),
        "held_out_refused": 0,
        "refusals": refusals[:NAMED],
        "prompts": {"too_long": prompts.too_long, "unanswered": prompts.unanswered},
    } | remarks.report(warnings)


def _judgeable(job: Job, asked: Asked) -> Asked:
    """Return a record, refused if it has a right answer that a reward can't compare with."""
    question, required, held_out = asked
    if isinstance(question, Question) and question.answer is not None and job.reinforce:
        for reward in job.reinforce.rewards:
            if (why := unjudgeable(reward.kind, question.answer)) is not None:
                return f"{question.conversation.where}: {why}", required, held_out
    return asked


def _write(prompts: EncodedPrompts, splits: Splits, folder: Path, pad: int) -> dict[str, Manifest]:
    """Write the rows that are in no finished shard, and the other files of both splits."""
    records = {}
    for split, encoded in zip(SPLITS, prompts.kept.values(), strict=True):
        writer, path = splits.writers[split], folder / split / RECORDS
        for start in range(writer.appended, len(encoded), BUFFER):
            ids = [ids for ids, _ in encoded[start : start + BUFFER]]
            with splits.writing(split):
                writer.append_rows(*rows_of(ids, prompts.longest, pad))
        write_atomically(path, *(line for _, line in encoded))
        records[split] = sha256_file(path)
    return splits.finish("prompts", records)


def _warnings(job: Job, prompts: EncodedPrompts) -> list[str]:
    """Return a sentence for each thing that is wrong with the prompts, first their lengths."""
    ids_read = [ids.tobytes() for encoded in prompts.kept.values() for ids, _ in encoded]
    row, context = job.seq_len("reinforce"), job.model_config_resolved().seq_len
    wider = f"Raise reinforce.seq_len (now {row:,}) or lower" if row < context else "Lower"
    warnings = {
        f"{prompts.too_long:,} of {prompts.read:,} prompts are left out: they have more than "
        f"{prompts.longest:,} tokens. {wider} reinforce.max_tokens": prompts.too_long,
        f"{len(ids_read) - len(set(ids_read)):,} of {len(ids_read):,} prompts are the same as "
        "another one": len(set(ids_read)) < len(ids_read),
        f"{prompts.unanswered:,} of {len(ids_read):,} prompts have no answer, so no reward can "
        "compare with one": 0 < prompts.unanswered < len(ids_read),
    }
    return [warning for warning, holds in warnings.items() if holds]


# ---------------------------------------------------------------- read while training


@dataclass(frozen=True)
class PromptRows:
    """The prompts of a split. Threads may share it.

    Attributes:
        stream: the rows of the split, in training order.
        longest: the most ids of a prompt, of both splits: one cache is for training and evaluation.
    """

    stream: RowStream
    longest: int
    _lines: list[memoryview] = field(repr=False)

    @classmethod
    def of(cls, data: PreparedData, stream: RowStream, split: str) -> PromptRows:
        """Return the prompts of "train" or "held_out", whose rows are those of `stream`.

        Raises BadInput if a file is missing, or is not what its manifest says.
        """
        longest, lines = 0, []
        for source, each in product(data.sources, SPLITS):
            folder, manifest = data.folder / source.folder / each, data.manifest(source, each)
            if each == split:
                lines += _lines(folder / RECORDS, manifest)
            for shard in manifest.shards:
                flags = open_npy(flags_path(folder / shard.name), manifest.seq_len)
                longest = max(longest, int(((flags & PADDING) == 0).sum(axis=1).max()))
        return cls(stream, longest, lines)

    def ids(self, row: int) -> list[int]:
        """Return the prompt of training row number `row`. Raises BadInput as the stream does."""
        stored_row = self.stream.row(row)
        assert stored_row.documents is not None
        return [int(token) for token in stored_row.tokens[stored_row.documents >= 0]]

    def question(self, row: int) -> tuple[str | list[Any], Any, dict[str, Any], str]:
        """Return the prompt (a text, or messages), the right answer, the whole record and how the
        answer begins, of training row number `row`."""
        number = self.stream.number_of(self.stream.place(row))
        record = parse_json(bytes(self._lines[number]), f"{RECORDS}, row {row}", strict=False)
        return record["prompt"], record["answer"], record["record"], record.get("begun", "")


def _lines(path: Path, manifest: Manifest) -> list[memoryview]:
    """Return the lines of RECORDS, mapped from the file. Raises BadInput."""
    if path.is_file() and sha256_file(path) == manifest.records:
        with open_file(path) as file:
            content = mmap(file.fileno(), 0, access=ACCESS_READ)
        matches = re.finditer(rb"[^\n]+\n", content)
        lines = [memoryview(content)[slice(*match.span())] for match in matches]
        if len(lines) == manifest.rows:
            return lines
    raise BadInput(
        f"{path} is missing, or is not what was written with these rows. Prepare the data again: "
        "--redo prepare"
    )
