"""Building a mask never looks at each pair of tokens, and decoding never repeats the keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pion.model.attention.masks import mask_bytes
from pion.model.pass_kind import PassKind
from tests.cuda_rehearsal.attention_peaks import BUILT, DECODED, read_attention_peaks

# The most bytes that building masks takes at once, whatever the rows.
MOST = 16 * 2**20

Peaks = tuple[dict[str, tuple[int, int]], dict[str, int]]


@pytest.fixture(scope="module")
def peaks(run_on_pretended_card: Callable[..., str]) -> Peaks:
    return read_attention_peaks(run_on_pretended_card("tests.cuda_rehearsal.attention_peaks"))


@pytest.mark.parametrize("name", BUILT)
def test_a_mask_is_built_without_a_look_at_each_pair_of_tokens(peaks: Peaks, name: str) -> None:
    how, (most, _) = BUILT[name], peaks[0][name]
    pairs = how.rows * how.tokens**2
    assert 0 < most < min(MOST, pairs // 16)


@pytest.mark.parametrize("name", BUILT)
def test_a_mask_keeps_what_is_predicted(peaks: Peaks, name: str) -> None:
    how, (_, stays) = BUILT[name], peaks[0][name]
    entries = how.config.entries(how.tokens)
    at = PassKind(2, entries, "cuda", documents=how.documents)
    # Slots' entries were made before the mask, but are predicted with it.
    given = 0 if how.config.slots is None else 5 * 8 * entries * how.rows
    predicted = mask_bytes(how.config, at, how.rows) - given
    assert 0 < stays <= predicted + 512 * 12  # each tensor is rounded up


@pytest.mark.parametrize("name", DECODED)
def test_decoding_never_repeats_keys_for_each_query_head(peaks: Peaks, name: str) -> None:
    assert 0 < peaks[1][name] < DECODED[name].expanded
