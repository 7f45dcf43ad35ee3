"""Conversations packed into one row do not see each other, from the shard to the logits."""

import pytest
import torch

from pion.data.chat.conversation import Turn, tokenize_batch
from pion.data.chat.packing import pack
from pion.data.order import RowOrder
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.data.tokens.tokenizer import train_bpe
from tests.families.families import VOCAB, each_family

TALKS = [
    [Turn("user", "Where is the cat?"), Turn("assistant", "On the mat.")],
    [Turn("user", "And the dog?"), Turn("assistant", "In the house, with a bone.")],
]
SEQ_LEN = 128


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Both conversations and padding in one row, written to a shard and read back."""
    folder = tmp_path_factory.mktemp("shard")
    tokenizer = train_bpe([turn.text for talk in TALKS for turn in talk] * 5, 300)
    writer = ShardWriter(
        folder,
        seq_len=SEQ_LEN,
        vocab_size=tokenizer.vocab_size,
        rows_per_shard=1,
        conversations=True,
    )
    packed = pack(tokenize_batch(tokenizer, TALKS), SEQ_LEN, tokenizer.pad or 1)
    writer.append_rows(packed.ids, packed.flags)
    manifest = Manifest("conversations", SEQ_LEN, tokenizer.vocab_size, writer.finish())
    rows = Rows(manifest, lambda shard: folder / shard.name)
    return RowStream([(rows, RowOrder(manifest.shard_rows, manifest.fingerprint, 0, 1))]).batch([0])


def documents_of(batch):
    """Return which tokens of the row are padding, in the first and in the second conversation."""
    documents = batch.documents[0]
    assert documents.unique().tolist() == [-1, 0, 1]
    return [documents == number for number in (-1, 0, 1)]


def logits(model, batch, tokens, dtype="float32"):
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.inference_mode(), bf16:
        return model(tokens, positions=batch.positions, documents=batch.documents)[0]


@each_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changing_one_conversation_moves_no_bit_of_the_others_logits(family, dtype, batch):
    model = family.decoder(seq_len=SEQ_LEN)
    padding, first, second = documents_of(batch)
    before = logits(model, batch, batch.tokens, dtype)
    for changed in (first, second, padding):
        tokens = batch.tokens.clone()
        tokens[0, changed] = (tokens[0, changed] + 7) % VOCAB
        after = logits(model, batch, tokens, dtype)
        for other in (first, second):
            if other is not changed:
                assert torch.equal(before[other], after[other])
        assert not torch.allclose(before[changed], after[changed])


@each_family
def test_a_packed_conversation_has_the_logits_it_has_alone(family, batch):
    """Windows are left out: their blocks begin with the row, not with a conversation."""
    model = family.decoder(seq_len=SEQ_LEN, windows=None)
    _, first, second = documents_of(batch)
    packed = logits(model, batch, batch.tokens)
    for conversation in (first, second):
        with torch.inference_mode():
            alone = model(batch.tokens[:, conversation])[0]
        torch.testing.assert_close(packed[conversation], alone, rtol=1e-4, atol=1e-5)
