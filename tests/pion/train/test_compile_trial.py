"""A broken compiler is found before a training needs it, and named with what is given up."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pion.bench.models import Rows
from pion.config.model_config import ModelConfig
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.train import hardware, smaller_plan
from pion.train.compile_trial import Trial, compile_block, difference, try_compiler
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from tests.pion.train.conftest import compile_with
from tests.support.tiny_config import tiny_config

PLAN = ComputePlan(micro_batch=2, threads=1, compile=True)
TRIAL = Trial(tiny_config(), 16, documents=False)
PRESETS = ("pion-nano", "tachyon-tiny", "daisy-pico", "pilon-48m", "lepton-nano", "pion2-nano")
# The suite has the family of whose gradients a compiler lost some.
MODELS = [
    pytest.param(
        ModelConfig.preset(name, vocab_size=320),
        id=name,
        marks=() if name == "pilon-48m" else pytest.mark.soak,
    )
    for name in PRESETS
]


def broken(*_) -> Callable[..., Any]:
    raise RuntimeError("no C compiler")


def test_a_compiler_that_works_changes_nothing_and_compiles_nothing_twice(compilations):
    assert try_compiler(TRIAL, PLAN) == []
    assert len(compilations) == 1
    settings = TrainSettings(steps=3, global_batch=4, lr=1e-3)
    rows = Rows(TRIAL.config.vocab_size, TRIAL.seq_len)
    with contextlib.closing(Trainer(Decoder(TRIAL.config), rows, settings, PLAN)) as trainer:
        assert trainer.train_step()
    assert len(compilations) == 1  # the step uses what the trial compiled


def test_a_compiler_that_fails_is_named_with_what_training_does_without_it(monkeypatch):
    for module in (hardware, smaller_plan):
        monkeypatch.setattr(module, "combines_kernels", lambda plan: plan.combo_kernels)
    compile_with(monkeypatch, broken)
    changes = try_compiler(TRIAL, PLAN)
    assert [change.changes for change in changes] == [
        "combo_kernels true → false",
        "compile true → false",
    ]
    assert all("no C compiler" in change.why for change in changes)


def compile_wrong(monkeypatch, factor, of="feedforward.down_proj"):
    """Let compiled blocks compute a multiple of the gradient by one weight."""

    def run(block, *rest):
        block.get_submodule(of).weight.register_hook(lambda gradient: gradient * factor)
        return block.computed(*rest)

    monkeypatch.setattr(decoder, "compiled", lambda computed: run)


@pytest.mark.parametrize(
    "factor", [0.4, *(pytest.param(f, marks=pytest.mark.soak) for f in (math.nan, 0.0, -1.0, 2.0))]
)
def test_a_compiler_that_computes_wrong_gradients_is_named_and_not_used(monkeypatch, factor):
    compile_wrong(monkeypatch, factor)
    (change,) = try_compiler(TRIAL, PLAN)
    assert change.changes == "compile true → false"
    assert change.why.startswith(f"the compiler of torch {torch.__version__} computes wrong")
    assert "blocks.0.feedforward.down_proj.weight differs by" in change.why


@pytest.mark.parametrize("factor", [0.9, pytest.param(1.1, marks=pytest.mark.soak)])
def test_gradients_that_differ_as_rounding_may_are_taken(monkeypatch, factor):
    compile_wrong(monkeypatch, factor)
    assert try_compiler(TRIAL, PLAN) == []


def test_the_gradient_of_a_few_numbers_may_differ(monkeypatch):
    """It is a sum over all tokens, of which rounding may leave nothing."""
    compile_wrong(monkeypatch, 0.0, of="attention.q_norm")
    assert try_compiler(TRIAL, PLAN) == []


def test_a_gradient_that_is_missing_is_wrong():
    large, small = torch.ones(64), torch.ones(63)
    assert difference({}, {"a": large, "b": small}) == (1.0, "a")
    assert difference({"a": torch.zeros(64)}, {"a": torch.zeros(64)}) == (0.0, "a")
    assert difference({"a": large}, {"a": torch.zeros(64)})[0] > 1e9
    assert difference({"a": math.nan * large}, {"a": large}) == (math.inf, "a")


def test_an_error_that_is_not_the_compilers_is_raised(monkeypatch):
    def wrong(*_):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(decoder, "compiled", lambda computed: wrong)
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        try_compiler(TRIAL, PLAN)


def test_a_plan_that_compiles_nothing_runs_nothing(monkeypatch):
    monkeypatch.setattr(Decoder, "__init__", broken)
    assert try_compiler(TRIAL, dataclasses.replace(PLAN, compile=False)) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", MODELS)
def test_the_compiled_block_of_each_family_learns_what_it_learns_as_written(monkeypatch, config):
    """Torch 2.11 lost gradients of operations in place inside an autograd function: a PILON's
    primitives learned nothing."""
    compile_with(monkeypatch, "aot_eager")
    trial = Trial(config, 16, documents=True)
    written = compile_block(trial, dataclasses.replace(PLAN, compile=False))
    assert difference(compile_block(trial, PLAN), written)[0] < 1e-2
