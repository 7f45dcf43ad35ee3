"""Tokens of text attend only within their document, and an end-of-text begins a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.data.order import RowOrder
from pion.data.row_flags import LEARNED, PADDING, STARTS
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.model.decoder import Decoder

END = 9  # the end-of-text; a tokenizer may give it any id
TEXT = [[5, END, 6, 7, END, 8], [END, END, 5, 6, 7, 8], [5, 6, 7, 8, 5, 6]]
DOCUMENTS = [[0, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]]
# Two conversations, then padding. The first one has two answers, and each ends with an end-of-text.
TALKS = [[3, END, 4, END, 3, 0]]
FLAGS = [[STARTS, LEARNED, 0, LEARNED, STARTS, PADDING]]


def rows_in(folder: Path, ids: list[list[int]], flags: list[list[int]] | None = None) -> Rows:
    writer = ShardWriter(
        folder,
        seq_len=len(ids[0]),
        vocab_size=10,
        rows_per_shard=len(ids),
        conversations=flags is not None,
    )
    writer.append_rows(np.array(ids), None if flags is None else np.array(flags, dtype=np.uint8))
    kind = "tokens" if flags is None else "conversations"
    manifest = Manifest(kind, len(ids[0]), 10, writer.finish())
    return Rows(manifest, lambda shard: folder / shard.name)


def stream(*rows: Rows, documents: int | None = END) -> RowStream:
    order = [RowOrder(r.manifest.shard_rows, r.manifest.fingerprint, 0, 1) for r in rows]
    return RowStream(list(zip(rows, order, strict=True)), documents=documents)


def test_each_end_of_text_begins_a_document_and_rows_are_counted_separately(tmp_path: Path) -> None:
    batch = stream(rows_in(tmp_path, TEXT)).batch(range(3))
    assert batch.documents is not None
    assert batch.documents.dtype == torch.int64
    found = dict(zip(map(tuple, batch.tokens.tolist()), batch.documents.tolist(), strict=True))
    assert found == dict(zip(map(tuple, TEXT), DOCUMENTS, strict=True))
    assert batch.positions is None  # rotary positions are relative


def test_the_last_token_of_a_document_still_learns_that_the_document_ends(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, TEXT)
    within, whole = stream(rows).batch(range(3)), stream(rows, documents=None).batch(range(3))
    assert torch.equal(within.targets, whole.targets)
    assert whole.documents is None


def test_a_conversation_keeps_its_context_after_an_answer(tmp_path: Path) -> None:
    talks = rows_in(tmp_path, TALKS, FLAGS)
    with_rule, without = stream(talks).batch([0]), stream(talks, documents=None).batch([0])
    assert with_rule.documents is not None
    assert with_rule.documents.tolist() == [[0, 0, 0, 0, 1, -1]]
    assert with_rule.sequences is without.sequences is None  # no preferences
    for name in ("tokens", "targets", "positions", "documents"):
        assert torch.equal(getattr(with_rule, name), getattr(without, name)), name


def test_in_a_mixture_text_and_conversations_each_have_their_own_documents(tmp_path: Path) -> None:
    mixed = stream(rows_in(tmp_path / "a", TEXT), rows_in(tmp_path / "b", TALKS, FLAGS))
    expected = {tuple(row): documents for row, documents in zip(TEXT, DOCUMENTS, strict=True)}
    expected[tuple(TALKS[0])] = [0, 0, 0, 0, 1, -1]
    seen = set()
    for i in range(24):
        batch = mixed.batch([i])
        assert batch.documents is not None
        assert batch.positions is not None
        row = tuple(batch.tokens[0].tolist())
        seen.add(row)
        assert batch.documents[0].tolist() == expected[row]
        is_talk = row == tuple(TALKS[0])
        assert batch.positions[0].tolist() == ([0, 1, 2, 3, 0, 0] if is_talk else [*range(6)])
    assert seen == expected.keys()


def test_a_stream_with_documents_has_its_own_fingerprint(tmp_path: Path) -> None:
    rows = rows_in(tmp_path, TEXT)
    kinds = [stream(rows, documents=end) for end in (None, END, 0)]
    assert len({one.fingerprint for one in kinds}) == 3


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_changing_one_document_moves_no_logit_of_another(tmp_path: Path, changed: int) -> None:
    batch = stream(rows_in(tmp_path, TEXT[:1])).batch([0])
    assert batch.documents is not None
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=10, seq_len=6
        )
    )

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, positions=batch.positions, documents=batch.documents)

    here = batch.documents == changed
    other = torch.where(here, (batch.tokens + 1) % 10, batch.tokens)
    before, after = logits(batch.tokens), logits(other)
    assert torch.equal(before[~here], after[~here])
    assert not torch.equal(before[here], after[here])
