"""Conversations packed into one row do not see each other, from the shard to the logits."""

from __future__ import annotations

from pathlib import Path

import torch

from pion.config import ModelConfig
from pion.data.conversation import Turn, tokenize_batch
from pion.data.order import RowOrder
from pion.data.packing import pack
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import Batch, RowStream
from pion.data.tokenizer import Tokenizer, train_bpe
from pion.model.decoder import Decoder

TALKS = [
    [Turn("user", "Where is the cat?"), Turn("assistant", "On the mat.")],
    [Turn("user", "And the dog?"), Turn("assistant", "In the house, with a bone.")],
]
SEQ_LEN = 128


def packed_row(folder: Path, tokenizer: Tokenizer) -> Batch:
    """Return both conversations in one row, written to a shard and read back."""
    folder.mkdir()
    writer = ShardWriter(
        folder,
        seq_len=SEQ_LEN,
        vocab_size=tokenizer.vocab_size,
        rows_per_shard=1,
        conversations=True,
    )
    for row in pack(tokenize_batch(tokenizer, TALKS), SEQ_LEN, tokenizer.pad or 1):
        writer.append_rows(row.ids, row.flags)
    manifest = Manifest("conversations", SEQ_LEN, tokenizer.vocab_size, writer.finish())
    rows = Rows(manifest, lambda shard: folder / shard.name)
    stream = RowStream([(rows, RowOrder(manifest.shard_rows, manifest.fingerprint, 0, 1))])
    return stream.batch([0])


def test_changing_one_conversation_moves_no_logit_of_the_other(tmp_path: Path) -> None:
    tokenizer = train_bpe([turn.text for talk in TALKS for turn in talk] * 5, 300)
    batch = packed_row(tmp_path / "shard", tokenizer)
    assert batch.documents is not None
    assert batch.positions is not None
    first, second = (batch.documents[0] == number for number in batch.documents[0].unique()[-2:])
    assert first.any()
    assert second.any()

    torch.manual_seed(0)
    config = ModelConfig(
        d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, seq_len=SEQ_LEN
    )
    model = Decoder(config)
    changed = batch.tokens.clone()
    changed[0, first] = (changed[0, first] + 7) % 300

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens, positions=batch.positions, documents=batch.documents)[0]

    before, after = logits(batch.tokens), logits(changed)
    assert torch.equal(before[second], after[second])
    assert not torch.allclose(before[first], after[first])


def test_a_packed_conversation_has_the_logits_it_has_alone(tmp_path: Path) -> None:
    tokenizer = train_bpe([turn.text for talk in TALKS for turn in talk] * 5, 300)
    batch = packed_row(tmp_path / "shard", tokenizer)
    assert batch.documents is not None
    second = batch.documents[0] == batch.documents[0].max()
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=300, seq_len=SEQ_LEN
    )
    model = Decoder(config)
    packed = model(batch.tokens, positions=batch.positions, documents=batch.documents)[0, second]
    alone = model(batch.tokens[:, second])[0]
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
