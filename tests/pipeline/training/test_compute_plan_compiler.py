"""Before the data arrives, a machine that compiles finds out whether its compiler works."""

import dataclasses

import pytest

from pion.train import compile_trial
from pion.train.smaller_plan import StepDown
from pipeline.console.messages import Note, Phase
from pipeline.training.compute_plan import check_compiler, choose_plan
from pipeline.training.context import TrainingContext
from pipeline.training.train_request import Group
from tests.support.jobs import tiny_job, train_request


def context_of(folder, said, group=None, **changes):
    request = train_request(tiny_job(**changes), folder, stages=["pretrain", "sft"])
    context = TrainingContext(request, group or Group(), said.append, lambda: False)
    context.watchdog.close()
    return context


def test_a_job_that_compiles_nothing_here_is_not_checked(tmp_path, monkeypatch):
    monkeypatch.delattr(compile_trial, "try_compiler")
    said = []
    context = context_of(tmp_path, said)  # `auto` compiles nothing on a CPU
    check_compiler(context)
    assert said == []
    assert context.at_most is None


@pytest.fixture
def tried(monkeypatch):
    """Let the compiler work. What it was tried with, and for which plan."""
    tried = []

    def works(trial, plan):
        tried.append((trial, plan))
        return []

    monkeypatch.setattr(compile_trial, "try_compiler", works)
    return tried


def test_a_compiler_that_works_leaves_the_plan_as_it_is(tmp_path, tried):
    said = []
    context = context_of(tmp_path, said, hardware__compile=True)
    check_compiler(context)
    ((trial, plan),) = tried
    assert trial.seq_len == context.job.seq_len("pretrain")
    assert plan == choose_plan(context.job, "pretrain", Group(), None)
    assert [type(message) for message in said] == [Phase]
    assert context.at_most is None
    check_compiler(context)
    assert len(tried) == 1


def test_a_rank_waits_for_no_other(tmp_path, tried):
    # There is no process group here, so every exchange between ranks would fail.
    second = Group(rank=1, world_size=2, distributed=True)
    check_compiler(context_of(tmp_path, [], second, hardware__compile=True))
    assert [plan.world_size for _, plan in tried] == [2]


def test_what_fails_is_reported_and_no_stage_tries_it_again(tmp_path, monkeypatch):
    def fails(trial, plan):
        less = dataclasses.replace(plan, combo_kernels=False)
        return [StepDown(plan, less, "torch.compile failed (no kernel)")]

    monkeypatch.setattr(compile_trial, "try_compiler", fails)
    said = []
    context = context_of(tmp_path, said, hardware__compile=True)
    full = choose_plan(context.job, "sft", Group(), None)
    check_compiler(context)
    notes = [message for message in said if isinstance(message, Note)]
    assert [note.text for note in notes] == [
        "torch.compile failed (no kernel). Training uses combo_kernels true → false"
    ]
    assert [change.changes for change in context.compiler_changes] == ["combo_kernels true → false"]
    plan = choose_plan(context.job, "sft", Group(), None, context.at_most)
    assert plan == dataclasses.replace(full, combo_kernels=False)
