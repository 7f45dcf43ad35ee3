"""Does a model know what it knows? Compare the probability of its likeliest token with the truth.

A model is calibrated if, of all tokens that it gives a probability of 70 %, it gets 70 % right.
Calibration says nothing about how much a model knows: one that always answers with the frequencies
of the language is calibrated, too.
"""

from __future__ import annotations

import numpy as np

from pion.data.shards import IGNORED
from pion.evaluation.held_out import Scores, by_document
from pion.evaluation.results import Calibration, Example
from pion.evaluation.shares import ratio, share_ratio

BINS = 15
# The bin of the example: with 15 bins, its middle is 70 %.
EXAMPLE = 10


def calibrate(scores: Scores, documents: np.ndarray) -> Calibration:
    """Return the calibration of what a model predicts; `documents` as in `held_out.summarize`."""
    counted = scores.targets != IGNORED
    confidence, right = scores.confidence, (scores.likeliest == scores.targets).astype(np.float64)
    excess, bins = confidence - right, bins_of(confidence)
    # Σ |excess of a bin| is a sum over tokens once each bin's sign is known, so the standard error
    # of a ratio holds for it.
    signs = np.sign(np.bincount(bins[counted], excess[counted], BINS))
    example = bins == EXAMPLE
    of_all = (confidence, right, excess**2, signs[bins] * excess, counted)
    of_example = (confidence * example, right * example, example)
    sure, hits, squares, distance, tokens, said, correct, some = by_document(
        documents, counted, *of_all, *of_example
    )
    found = Example(ratio(said, some)[0], *share_ratio(correct, some), tokens=int(some.sum()))
    return Calibration(
        *ratio(distance, tokens),
        *ratio(squares, tokens),
        *ratio(sure, tokens),
        *share_ratio(hits, tokens),
        near_70=found if found.tokens else None,
        tokens=int(tokens.sum()),
    )


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the number of the bin of each probability; of one that is not a number, the first."""
    return np.clip(np.nan_to_num(confidence) * BINS, 0, BINS - 1).astype(np.int64)
