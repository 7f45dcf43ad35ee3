"""The end of an attempt is in the store, until a later attempt has begun."""

import json
import signal

import pytest

from pipeline.cli import main
from pipeline.report.page_data import page_data
from pipeline.report.reading import read_history
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.meddling import Meddling
from tests.support.whole_runs import (
    ends_with,
    finish,
    interrupt_before_row,
    kill_after_a_save,
    start,
    write_job,
)

TERM, SECRET = signal.SIGTERM, "correct-horse-battery"
SHORT = {"pretrain__steps": 4, "sft": None, "log__every": 1, "evaluate__final_rows": 1}
MISTAKE = ("data.sources=[{kind: jsonl, path: broken.jsonl}]",)
UNSTABLE = ("pretrain.lr=1e6", "pretrain.min_lr=1e6", "checkpoint.max_rewinds=0")
BROKEN = '{"text": "a"}\n{"text": "b"}\n{\n'


def told(folder, capsys):
    """Return what `pion status` prints and gives as JSON, and the notes of the page."""
    run = f"{folder}/runs/tiny"
    assert main(["status", run]) == 0
    text = capsys.readouterr().out
    assert main(["status", run, "--json"]) == 0
    notes = page_data(read_history(RunState(open_store(f"{folder}/runs"), "tiny")))["summary"]
    return text, json.loads(capsys.readouterr().out)["end"], "\n".join(notes["notes"])


def bug(job):
    meddling = Meddling(job.parent)
    meddling.wrap(
        "pipeline.stages.evaluate:evaluate_run",
        f"""
        def wrapper(evaluate_run, *arguments):
            raise TypeError("a thing of {SECRET}" + 10_000 * "x")
        """,
    )
    ends_with(1, start(job, env=meddling.environment() | {"HF_TOKEN": SECRET}))


@pytest.mark.parametrize(
    ("end", "code", "stage", "words"),
    [
        (lambda job: ends_with(2, start(job, *MISTAKE)), 2, "prepare", "broken.jsonl:3"),
        (lambda job: ends_with(1, start(job, *UNSTABLE)), 1, "pretrain", "lower pretrain.lr"),
        (lambda job: ends_with(4, start(job, "budget.hours=1e-9")), 4, None, "budget"),
        (lambda job: interrupt_before_row(8, job), 75, "pretrain", "SIGINT"),
        (
            lambda job: interrupt_before_row(8, job, number=TERM),
            75,
            "pretrain",
            "SIGTERM",
        ),
        (bug, 1, "evaluate", "a bug in Pion: TypeError: a thing of <HF_TOKEN>"),
    ],
    ids=["mistake", "unstable", "budget", "Ctrl-C", "SIGTERM", "bug"],
)
def test_an_attempt_that_ends_with_an_error_says_so_until_the_next(
    tmp_path, capsys, end, code, stage, words
):
    job = write_job(tmp_path, **SHORT)
    (tmp_path / "broken.jsonl").write_text(BROKEN)
    end(job)
    text, event, notes = told(tmp_path, capsys)
    assert (event["code"], event.get("stage")) == (code, stage or event.get("stage"))
    assert words in event["message"]
    assert len(event["message"]) <= 2000
    for shown in (text, notes):
        assert f"with exit code {code}" in shown
        assert words in shown
    finish(job)
    assert told(tmp_path, capsys)[1] is None


def test_a_process_that_was_killed_is_a_dead_owner(tmp_path, capsys):
    kill_after_a_save(write_job(tmp_path, **SHORT, checkpoint__every_steps=2), "pretrain")
    text, event, _ = told(tmp_path, capsys)
    assert event is None
    assert ", dead" in text
