"""Which share of little data must be held out, so that something is held out at all.

A hash of each text decides, so of a few texts, none may be on the held-out side. Of little data,
all of which was looked at, this asks the hash as the run will.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pion.data.documents.file_to_documents import whole_characters
from pion.data.documents.python_docs import is_held_out
from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.data.sources import LONG_CHARS, texts_of
from pipeline.new.job_text import Proposal
from pipeline.new.layouts import Record
from pipeline.new.look import Look

# What is tried if the share that the rules say holds out too little.
SHARES = (0.1, 0.2, 0.3, 0.4)
# So many conversations are held out at least; and so many rows of text, for spare.
CONVERSATIONS, ROWS = 2, 1.5


def with_enough_held_out(proposal: Proposal, paragraphs: Sequence[bool]) -> Proposal:
    """Return the proposal with shares that hold something out of each source.

    `paragraphs` is whether each look's files are cut into paragraphs. Raises BadInput for data that
    is too little for that.
    """
    stage, sft = proposal.pretraining, proposal.tuning
    for look, cut in zip(proposal.looks, paragraphs, strict=True):
        if not (look.all_kept and look.records):
            continue
        if look.stage == "sft" and sft is not None:
            texts = [_hashed(look, record, where) for where, record in look.few]
            share = _enough(look, [(text, 1.0) for text in texts], sft.held_out, CONVERSATIONS)
            sft = replace(sft, held_out=share)
        elif look.stage == "pretrain" and stage is not None:
            per_token = look.text_bytes / max(1, stage.own_tokens)
            documents = _documents(look, cut=cut)
            if any(len(text) > LONG_CHARS for text in documents):
                continue  # the end of each is held out
            sized = [(text, len(text.encode()) / per_token) for text in documents]
            share = _enough(look, sized, stage.held_out, ROWS * stage.seq_len)
            stage = replace(stage, held_out=share)
    return replace(proposal, pretraining=stage, tuning=sft)


def _enough(look: Look, texts: Sequence[tuple[str, float]], planned: float, needed: float) -> float:
    """Return the smallest share that holds out texts of `needed` size in all."""
    for share in (planned, *(share for share in SHARES if share > planned)):
        if sum(size for text, size in texts if is_held_out(text, share)) >= needed:
            return share
    count = f"{look.text_bytes:,} bytes of text"
    if look.stage == "sft":
        count = f"{len(texts):,} conversations"
    raise BadInput(
        f"{look.reading.group.path}: {count} are too little to train on: even if four tenths are "
        "held out, that is too little to measure anything on. Add data. Nothing was written."
    )


def _hashed(look: Look, record: Record, where: str) -> str:
    """Return the text of a conversation whose hash decides."""
    own = look.reading.own_template
    texts = texts_of(read_conversation(record, where, own=own), own=own)
    return "\n".join(whole_characters(text) for text in texts)


def _documents(look: Look, *, cut: bool) -> list[str]:
    texts = [str(record["text"]) for _, record in look.few]
    if cut:
        texts = [part for text in texts for part in re.split(r"\n\s*\n", text)]
    return [whole_characters(text) for text in texts if text.strip()]
