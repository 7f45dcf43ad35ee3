"""Compiled blocks become kernels that fit on the cards, without running the kernels.

Inductor lowers training steps on a pretended card, flex attention included. Triton and ptxas
assemble the kernels for the card's architecture. This finds:

  * a step that can't be lowered;
  * a kernel that Triton or ptxas refuses, or that needs more shared memory than the card has, in
    every configuration that inductor would try;
  * a block that is not compiled as a whole, and equal layers that are compiled again.

A pretended card can't see:

  * values: wrong results, NaN, overflow, and whether two runs give the same bits;
  * races, in a kernel and between streams, and a kernel that waits or never ends;
  * addresses: misaligned or out-of-bounds access;
  * what an operation does inside a library: cuBLAS and flash attention are not assembled here;
  * speed: inductor would time a kernel's configurations on the card and take the fastest. Whether
    it pads a product is decided by time, too. Here no product is padded;
  * registers that do not fit and go to memory, a lack of memory, and the driver's own limits;
  * CUDA graphs, and the code that starts the kernels: only the kernels are assembled.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from tests.cuda_rehearsal.compiled import (
    DTYPES,
    SOAK,
    SOAK_CARDS,
    SUITE,
    Case,
    Dtype,
    Outcome,
    soak,
    structures,
    suite,
)
from tests.cuda_rehearsal.report import handed_back

Outcomes = dict[str, Outcome]

pytestmark = pytest.mark.soak

# Where sliced products of experts copy to the host where the slices end.
SLICES = "pion/model/feedforward/expert_products.py"


@pytest.fixture(scope="module")
def lower(run_on_pretended_card: Callable[..., str]) -> Callable[..., Outcomes]:
    """`lower(*arguments)`: the outcomes of lower.py."""

    def outcomes(*arguments: str) -> Outcomes:
        output = run_on_pretended_card("tests.cuda_rehearsal.lower", *arguments)
        return {name: Outcome(**fields) for name, fields in handed_back(output).items()}

    return outcomes


@pytest.fixture(scope="module")
def families(lower: Callable[..., Outcomes]) -> Outcomes:
    return lower("families")


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Return what is wrong with an outcome, as text."""
    expected = structures(case.config)
    reasons = outcome.block_compiles()
    found = [] if outcome.error is None else [outcome.error]
    found += [f"graph break: {reason}" for reason in outcome.graph_breaks]
    found += [f"{kernel}: {error}" for kernel, error in outcome.unfit.items()]
    if len(reasons) != expected:
        found.append(f"blocks were compiled {len(reasons)} times, not {expected}: {reasons}")
    for function, again in outcome.compiles.items():
        if len(again) > 1 and again is not reasons:
            found.append(f"{function} was compiled {len(again)} times: {again}")
    found += [f"a wait: {wait}" for wait in outcome.waits if SLICES not in wait]
    return found


def check_fits(family: str, outcome: Outcome) -> None:
    assert faults(suite()[family], outcome) == []
    # Blocks have a forward and a backward pass, and the loss has one graph for both.
    assert outcome.graphs == 2 * len(outcome.block_compiles()) + 1
    assert outcome.kernels > 0


@pytest.mark.parametrize("family", SUITE)
def test_a_block_of_each_family_fits_on_an_a40(families: Outcomes, family: str) -> None:
    check_fits(family, families[family])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("card", SOAK_CARDS)
@pytest.mark.parametrize("family", SOAK)
def test_every_kind_of_step_fits_on_a_card(
    lower: Callable[..., Outcomes], family: str, card: str, dtype: Dtype
) -> None:
    outcomes, cases = lower("soak", family, card, dtype), soak(family, card, dtype)
    assert outcomes.keys() == cases.keys()
    wrong = {kind: faults(case, outcomes[kind]) for kind, case in cases.items()}
    assert {kind: found for kind, found in wrong.items() if found} == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_layers_of_a_preset_share_one_compile(
    lower: Callable[..., Outcomes], preset: str
) -> None:
    (outcome,) = lower("layers", preset).values()
    assert faults(Case(ModelConfig.preset(preset)), outcome) == []
