"""What compiled blocks keep for the backward pass, as the trace finds it without a compiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pion.train.memory import Workload
from pion.train.memory_trace.step import StepTrace
from tests.cuda_rehearsal.compiled_blocks import Compiled, read_kept
from tests.cuda_rehearsal.pretended_card import CARDS

pytestmark = pytest.mark.soak

PROGRAM = "tests.cuda_rehearsal.compiled_blocks"
MOST = 1.15  # a trace is never under, and never over by more than this


def traced(how: Compiled) -> list[float]:
    """Return the bytes of a token that each block keeps, with its result."""
    config = how.config
    work = Workload(
        config,
        config.seq_len,
        how.dtype,
        "adamw",
        "cuda",
        how.documents,
        compile=True,
        residual=how.residual,
        capability=CARDS[how.card].capability,
    )
    result = (4 if how.residual == "float32" else 2) * config.d_model
    kept = [block.kept[1] for block in StepTrace(work.traced()).blocks]
    return [each / config.entries(config.seq_len) + result for each in kept]


def check(output: str, preset: str) -> None:
    for how, kept in read_kept(preset, output).items():
        ratios = [block / found for block, found in zip(traced(how), kept, strict=True)]
        assert all(0.9999 <= ratio <= MOST for ratio in ratios), (how, ratios)


def test_a_compiled_block_keeps_what_is_traced(
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
def test_compiled_blocks_of_each_family_keep_what_is_traced(
    run_on_pretended_card: Callable[..., str], preset: str
) -> None:
    check(run_on_pretended_card(PROGRAM, preset), preset)
