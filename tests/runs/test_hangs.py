"""A hang is noticed, described and ended. Slow, suspended or evaluating processes don't hang."""

import os
import signal
import time

import pytest

from tests.support.meddling import Meddling
from tests.support.whole_runs import ends_with, finish, interrupt, start, wait_for, write_job


def test_a_hang_is_noticed_described_and_ended(tmp_path):
    meddling = Meddling(tmp_path)
    meddling.wrap(
        "pion.train.feed:BatchFeed.take",
        """
        def wrapper(take, self, next_row, skipped):
            if next_row == 28:
                time.sleep(1000)
            return take(self, next_row, skipped)
        """,
    )
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=2)
    output = ends_with(75, start(job, "hardware.hang_seconds=5", env=meddling.environment()))
    assert "training hangs" in output
    assert "in wrapper" in output  # the stack says where
    assert "continues after step" in finish(job)


@pytest.mark.soak
def test_a_suspended_machine_does_not_count_as_a_hang(tmp_path):
    job = write_job(tmp_path, pretrain__steps=400, sft=None, log__every=1)
    process = start(job, "hardware.hang_seconds=5")
    wait_for(process, "pretrain step 20")
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(6)  # while the lid is closed
    os.kill(process.pid, signal.SIGCONT)
    wait_for(process, "pretrain step", lines=20)
    assert "hangs" not in interrupt(process)


BY_ROW = {
    "sft": None,
    "pretrain__steps": 4,
    "evaluate__every": 4,
    "evaluate__prompts": ["a"],
    "hardware__micro_batch": 1,
    "hardware__hang_seconds": 5,
}


def measures_slowly(folder, seconds):
    """Make each evaluated row take so many seconds, and each token of a sample a while."""
    meddling = Meddling(folder)
    meddling.wrap(
        "pion.evaluation.held_out:token_nll",
        f"""
        def wrapper(token_nll, *arguments):
            if import_module("torch").is_inference_mode_enabled():  # as training measures
                time.sleep({seconds})
            return token_nll(*arguments)
        """,
    )
    meddling.wrap(
        "pion.generation.decoding:Decoding.step",
        """
        def wrapper(step, *arguments):
            time.sleep(0.1)
            return step(*arguments)
        """,
    )
    return meddling


@pytest.mark.soak
def test_an_evaluation_that_takes_longer_than_a_hang_is_none(tmp_path):
    meddling = measures_slowly(tmp_path, 1.5)
    process = start(write_job(tmp_path, **BY_ROW), env=meddling.environment())
    wait_for(process, "held-out loss")
    assert "hangs" not in ends_with(0, process)
    meddling.check()


def never_built(folder):
    meddling = Meddling(folder)
    meddling.wrap(
        "pipeline.training.context:Watchdog",
        """
        def wrapper(watchdog, *arguments, **options):
            return watchdog(*arguments, **options | {"start_limit": 8.0})
        """,
    )
    meddling.wrap(
        "pion.train.trainer:Trainer.__init__",
        """
        def never_built(original, self, *arguments, **options):
            time.sleep(1000)
        wrapper = never_built
        """,
    )
    return meddling


def never_measured(folder):
    return measures_slowly(folder, 1000)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("hangs", "where"), [(never_measured, "in wrapper"), (never_built, "in never_built")]
)
def test_an_evaluation_that_hangs_and_a_trainer_never_built_are_hangs(tmp_path, hangs, where):
    meddling = hangs(tmp_path)
    output = ends_with(75, start(write_job(tmp_path, **BY_ROW), env=meddling.environment()))
    assert "training hangs" in output
    assert where in output


def test_a_hang_outside_of_training_is_told_and_ends_nothing(tmp_path):
    meddling = Meddling(tmp_path)
    meddling.wrap(
        "pipeline.run.journal:Watchdog",
        """
        def wrapper(watchdog, *arguments, **options):
            return watchdog(*arguments, **options | {"start_limit": 5.0})
        """,
    )
    meddling.wrap(
        "pipeline.run.journal:Journal._tell_hang",
        """
        def wrapper(tell, *arguments):
            return tell(*arguments)
        """,
    )
    meddling.wrap(
        "pipeline.run.advance:finish_publish",
        """
        def waits_to_be_noticed(finish, *arguments, **options):
            while not (HERE / "called pipeline.run.journal:Journal._tell_hang").exists():
                time.sleep(0.05)
            return finish(*arguments, **options)
        wrapper = waits_to_be_noticed
        """,
    )
    job = write_job(tmp_path, sft=None, pretrain__steps=4, publish={"to": "model"})
    output = ends_with(0, start(job, env=meddling.environment()))
    assert "this process may hang, and goes on. No message for" in output
    assert "in waits_to_be_noticed" in output
    meddling.check()
