"""A stand-in for a decoder: its logits depend on a hash of all tokens before, and on nothing else.

So a token too many, too few, or in another place changes every number after it.
"""

from typing import cast

import torch

from pion.model.decoder import Decoder
from tests.support.core_bundle import WORDS
from tests.support.tiny_config import tiny_config

# Odd numbers of 63 bits, for hashes in int64.
_FIRST, _TOKEN, _ID, _MIX = (
    0x1E3779B97F4A7C15,
    0x3F58476D1CE4E5B9,
    0x14D049BB133111EB,
    0x2545F4914F6CDD1D,
)
# How much more likely the favoured ids are, in nats. The noise of all ids is from 0 to 8.
FAVOUR = 8.0


class PrefixModel:
    """Has what the measures of pion/evaluation use of a decoder.

    `favoured` ids are likelier than others, so that some greedy answers are right.
    """

    def __init__(self, vocab_size, seq_len, seed=0, favoured=()):
        self.config = tiny_config(vocab_size=vocab_size, seq_len=seq_len)
        self.training = False
        self.seed = seed
        self.rows_seen = []
        self._bonus = torch.zeros(vocab_size)
        self._bonus[list(favoured)] = FAVOUR

    @classmethod
    def of(cls, tokenizer, seq_len, seed=0):
        """Return a model that favours the tokens of the made-up bundle's words."""
        words = tokenizer.encode_batch([f" {word}" for word in WORDS])
        return cls(tokenizer.vocab_size, seq_len, seed, sorted({i for ids in words for i in ids}))

    def decoder(self):
        """Return this model as what measures expect."""
        return cast(Decoder, self)

    def parameters(self):
        return iter([self._bonus])

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)

    def hidden(self, tokens, **_):
        """Return a hash of the tokens up to each place, (B, T, 1)."""
        assert tokens.shape[1] <= self.config.seq_len
        self.rows_seen.append(len(tokens))
        state = torch.full((len(tokens),), _FIRST + self.seed, dtype=torch.int64)
        states = []
        for column in tokens.T:
            state = (state ^ (column + 1) * _TOKEN) * _MIX
            state = state ^ (state >> 29)
            states.append(state)
        return torch.stack(states, dim=1).unsqueeze(-1)

    def logits_in_fp32(self, hidden, vocab_size):
        """Return logits of hashes (N, 1), (N, vocab_size)."""
        mixed = (hidden ^ (torch.arange(vocab_size) + 1) * _ID) * _MIX
        mixed = (mixed ^ (mixed >> 31)) * _TOKEN
        noise = ((mixed >> 40) & 0xFFFF).float() / 0x2000
        return noise + self._bonus[:vocab_size]

    def logits(self, tokens):
        """Return the logits of all places, (B, T, V)."""
        states = self.hidden(tokens)
        flat = self.logits_in_fp32(states.flatten(0, 1), self.config.vocab_size)
        return flat.unflatten(0, tokens.shape)
