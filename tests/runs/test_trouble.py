"""Trouble that a run recovers from, or ends with after the configured number of tries."""

import contextlib

import psutil
import pytest

from pipeline.state.checkpoints import uploader
from tests.support.meddling import Meddling
from tests.support.waiting import lines_of
from tests.support.whole_runs import (
    RUN_SECONDS,
    ends_with,
    events_of,
    final_weights,
    head_of,
    newest,
    rows_trained,
    start,
    write_job,
)


@pytest.mark.soak
def test_a_killed_uploader_costs_a_save_and_nothing_else(tmp_path, whole):
    unbroken = whole()
    job = write_job(tmp_path, checkpoint__every_steps=2, log__every=1)
    process = start(job)
    killed = 0
    for line in lines_of(process, RUN_SECONDS):
        if "pretrain step" in line and killed < 2:
            for child in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if uploader.__name__ in " ".join(child.cmdline()):
                        child.kill()
                        killed += 1
    ends_with(0, process)
    assert killed
    assert final_weights(tmp_path) == final_weights(unbroken)


def test_uploaders_that_die_three_times_in_a_row_end_the_run_with_what_is_safe(tmp_path):
    meddling = Meddling(tmp_path)
    meddling.wrap(
        "pipeline.state.checkpoints.uploader:Uploader._ask",
        """
        def wrapper(ask, self, process, request):
            process.kill()
            process.wait()
            return ask(self, process, request)
        """,
    )
    job = write_job(tmp_path, checkpoint__every_steps=2, log__every=1)
    output = ends_with(74, start(job, env=meddling.environment()))
    assert "the process that saves checkpoints" in output
    assert "use a smaller hardware.micro_batch" in output
    assert "safe" in output
    meddling.check()


def poisoned_from(folder, condition):
    """Make a weight NaN when a batch whose rows meet `condition` is handed out."""
    meddling = Meddling(folder)
    meddling.run("poisoned = []")
    meddling.wrap(
        "pion.train.feed:BatchFeed.take",
        f"""
        def wrapper(take, self, next_row, skipped):
            batch = take(self, next_row, skipped)
            if batch.rows {condition}:
                for parameter in poisoned:
                    parameter.data[0] = float("nan")
            return batch
        """,
    )
    meddling.wrap(
        "pion.train.trainer:Trainer.__init__",
        """
        def wrapper(init, self, model, *arguments, **options):
            init(self, model, *arguments, **options)
            poisoned[:] = [next(model.parameters())]
        """,
    )
    return meddling


def test_rows_that_give_nan_are_left_out_and_recorded(tmp_path):
    meddling = poisoned_from(tmp_path, "== (28, 32)")
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=3)
    output = ends_with(0, start(job, env=meddling.environment()))
    assert "skipping rows 28 to 31" in output
    trained = rows_trained(tmp_path)
    assert trained[:9] == [*([4 * s, 4 * s + 4] for s in range(7)), [28, 36], [36, 40]]
    assert len(trained) == 20
    (rows,) = head_of(tmp_path).skipped["pretrain"]
    assert (rows.first, rows.stop, rows.step) == (28, 32, 8)
    assert [event["rows"] for event in events_of(tmp_path, "rewound")] == [[28, 32]]


def test_trouble_at_every_turn_stops_after_the_agreed_tries_and_says_what_to_do(tmp_path):
    meddling = poisoned_from(tmp_path, "> (28, 32)")
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=3)
    output = ends_with(1, start(job, "checkpoint.max_rewinds=2", env=meddling.environment()))
    assert "Traceback" not in output
    assert len(head_of(tmp_path).skipped["pretrain"]) == 2
    assert newest(tmp_path).step <= 8
