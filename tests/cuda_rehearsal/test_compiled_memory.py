"""What compiled blocks keep for the backward pass, as their parts state it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pion.model.params_and_flops import kept_bytes_per_token, kept_if_recomputed
from pion.train.memory import Workload
from tests.cuda_rehearsal.compiled_blocks import Compiled, read_kept
from tests.cuda_rehearsal.pretended_card import CARDS

pytestmark = pytest.mark.soak

PROGRAM = "tests.cuda_rehearsal.compiled_blocks"
MOST = 1.15  # a statement is never under, and never over by more than this


def stated(how: Compiled) -> list[int]:
    """Return the bytes of a token that the blocks state, without what is computed before them."""
    config = how.config
    capability = CARDS[how.card].capability
    at = Workload(
        config,
        config.seq_len,
        how.dtype,
        "adamw",
        "cuda",
        how.documents,
        compile=True,
        capability=capability,
    ).pass_kind()
    before = [kept - 4 * config.d_model for kept in kept_if_recomputed(config, at)]
    kept = kept_bytes_per_token(config, at)
    return [block - tables for block, tables in zip(kept, before, strict=True)]


def check(output: str, preset: str) -> None:
    for how, kept in read_kept(preset, output).items():
        ratios = [block / found for block, found in zip(stated(how), kept, strict=True)]
        assert all(1 <= ratio <= MOST for ratio in ratios), (how, ratios)


def test_a_compiled_block_keeps_what_its_parts_state(
    run_on_pretended_card: Callable[..., str],
) -> None:
    check(run_on_pretended_card(PROGRAM, "suite"), "suite")


@pytest.mark.parametrize(
    "preset",
    [
        *("pion-small", "pion-xl", "tachyon-tiny", "tachyon-large", "daisy-pico", "daisy-1.6b"),
        *("pilon-48m", "pilon-360m", "lepton-small"),
    ],
)
def test_compiled_blocks_of_each_family_keep_what_their_parts_state(
    run_on_pretended_card: Callable[..., str], preset: str
) -> None:
    check(run_on_pretended_card(PROGRAM, preset), preset)
