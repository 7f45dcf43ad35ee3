"""A token n-gram model: the baseline that a trained decoder should beat.

It uses interpolated absolute discounting (Ney, Essen and Kneser, "On structuring probabilistic
dependences in stochastic language modelling", 1994; Chen and Goodman, "An empirical study of
smoothing techniques for language modeling", 1999, §2.6). Let h be a context of n - 1 tokens, and
h' that context without its oldest token. Then

    p_n(w | h) = max(c(h w) - D_n, 0) / c(h) + D_n N(h) / c(h) · p_{n-1}(w | h')

where c counts windows inside the training rows, c(h) = Σ_w c(h w), N(h) is the number of different
tokens that follow h, and p_0 = 1 / vocab_size. After a context that never occurred, p_n = p_{n-1}.
Every order has the discount D_n = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of windows that
occur once and twice. In any context the probabilities of the vocabulary sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pion.errors import BadInput

# The index of a window that is not in the training rows.
UNSEEN = -1
# The discount where n1 = 0. A discount of 0 would give unseen tokens the probability 0.
DISCOUNT_WITHOUT_SINGLETONS = 0.5


@dataclass(frozen=True)
class Level:
    """The counts of one order. A window is a context, by its index one order down, and a token."""

    keys: np.ndarray  # (windows,) int64, sorted: context · vocab_size + token
    counts: np.ndarray  # (windows,) c(h w)
    totals: np.ndarray  # (contexts,) c(h)
    kinds: np.ndarray  # (contexts,) N(h)
    discount: float  # D_n


@dataclass(frozen=True)
class NGram:
    """A fitted model; the first of `levels` is the unigram."""

    levels: tuple[Level, ...]
    vocab_size: int
    train_tokens: int

    @property
    def order(self) -> int:
        """The length of the longest windows, in tokens."""
        return len(self.levels)

    def nll(self, rows: np.ndarray) -> np.ndarray:
        """Return the negative log-likelihood in nats of every token except the first of each row.

        `rows` is (R, T) ids; the result is (R, T - 1) float64. A token with fewer than order - 1
        tokens before it is predicted from those. Raises BadInput for ids outside the vocabulary.
        """
        rows = _checked(rows, self.vocab_size)
        probability = np.full(rows.shape, 1.0 / self.vocab_size)
        windows = np.zeros_like(rows)
        for level in self.levels:
            contexts = _contexts(windows, unigram=level is self.levels[0])
            windows = _lookup(level.keys, contexts, rows, self.vocab_size)
            count = np.where(windows == UNSEEN, 0, level.counts[windows])
            has_context = contexts != UNSEEN
            # A context that occurs only at the end of rows has no token after it.
            has_context[has_context] = level.totals[contexts[has_context]] > 0
            h = contexts[has_context]
            backed_off = level.discount * level.kinds[h] * probability[has_context]
            discounted = np.maximum(count[has_context] - level.discount, 0)
            probability[has_context] = (discounted + backed_off) / level.totals[h]
        return -np.log(probability[:, 1:])


def fit(rows: np.ndarray, vocab_size: int, order: int = 4) -> NGram:
    """Return the model of all windows of up to `order` tokens inside the rows (R, T).

    Raises BadInput for an order outside 1–6, no tokens, or ids outside the vocabulary.
    """
    if not 1 <= order <= 6:
        raise BadInput(f"n-gram order {order} is outside 1–6")
    rows = _checked(rows, vocab_size)
    if rows.size == 0:
        raise BadInput("an n-gram model needs training tokens; there are none")
    levels: list[Level] = []
    windows, contexts_below = np.zeros_like(rows), 1
    for _ in range(min(order, rows.shape[1])):
        contexts = _contexts(windows, unigram=not levels)
        inside = contexts != UNSEEN
        keys, inverse, counts = np.unique(
            contexts[inside] * vocab_size + rows[inside], return_inverse=True, return_counts=True
        )
        parents = keys // vocab_size
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        levels.append(
            Level(
                keys=keys,
                counts=counts,
                totals=np.bincount(parents, counts, minlength=contexts_below),
                kinds=np.bincount(parents, minlength=contexts_below),
                discount=float(once / (once + 2 * twice)) if once else DISCOUNT_WITHOUT_SINGLETONS,
            )
        )
        windows = np.full_like(rows, UNSEEN)
        windows[inside] = inverse
        contexts_below = len(keys)
    return NGram(tuple(levels), vocab_size, train_tokens=rows.size)


def _contexts(windows: np.ndarray, unigram: bool) -> np.ndarray:
    """Return each token's context: the window one order down that ends at the token to its left."""
    contexts = np.empty_like(windows)
    contexts[:, 1:] = windows[:, :-1]
    contexts[:, 0] = 0 if unigram else UNSEEN
    return contexts


def _lookup(
    keys: np.ndarray, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Return the indices of windows in `keys`, UNSEEN for windows that are not in `keys`."""
    wanted = contexts * vocab_size + tokens
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((contexts != UNSEEN) & (keys[places] == wanted), places, UNSEEN)


def _checked(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the rows as int64. Raises BadInput unless they are (R, T) ids of the vocabulary."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise BadInput(f"expected (rows, seq_len) integer ids, got {rows.shape} {rows.dtype}")
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < vocab_size:
        raise BadInput(
            f"token ids from {rows.min()} to {rows.max()} don't fit a vocabulary of {vocab_size}"
        )
    return rows.astype(np.int64)
