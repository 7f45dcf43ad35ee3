"""A card computes what a CPU computes: `pytest -m gpu`. Tiny models show that the checks work."""

import gc

import pytest
import torch

from pion.bench.models import FAMILIES, Bench
from tests.gpu.checks import CHECKS

# By default a check of each kind, so that each family has one.
SOME = (
    *("compiler/pilon", "compiler/lepton", "logits/tachyon", "losses/pion/float32", "masks"),
    *("generation/windowed", "generation/slots", "resume/daisy", "kernels/loss"),
    *("kernels/compiled-loss", "kernels/experts", "kernels/flex", "step-down", "graphs"),
)


@pytest.fixture
def card():
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device on this machine")
    yield Bench(torch.device("cuda", torch.cuda.current_device()), tiny=False)
    # The next check compiles and measures for itself.
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_a_card_computes_right(name, card):
    found = CHECKS[name](card)
    print(f"{name}: {found.words}")
    assert found.verdict == "right", found.words


@pytest.mark.parametrize(
    "name",
    [name if name in SOME else pytest.param(name, marks=pytest.mark.soak) for name in CHECKS],
)
def test_a_cpu_passes_with_tiny_models(name):
    found = CHECKS[name](Bench(torch.device("cpu"), tiny=True))
    if name == "kernels/flex":
        assert (found.verdict, "CUDA" in found.words) == ("left out", True)
    else:
        assert found.verdict == "right", found.words


def test_every_family_has_every_kind_of_check():
    for family in FAMILIES:
        for name in ("logits/{}", "losses/{}/float32", "losses/{}/bfloat16", "resume/{}"):
            assert name.format(family) in CHECKS
    assert {"generation/capped", "generation/windowed", "generation/slots"} <= CHECKS.keys()
