"""A run warns once of preferences that spoil its model, and ends if they teach nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.support.meddling import with_slow_steps
from tests.support.preference_runs import prefer_job
from tests.support.whole_runs import ends_with, finish, head_of, kill, start, wait_for

# Far too high a rate.
SPOILS = {"prefer__steps": 40, "prefer__lr": 0.1, "prefer__warmup_steps": 0}
EACH_STEP = {"checkpoint__every_steps": 1, "log__every": 1}
WARNING = "warning: prefer step 8: the model has left its reference"


@pytest.mark.soak
def test_a_warning_is_said_once_by_a_run_that_is_killed_and_its_report_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = prefer_job(tmp_path, **SPOILS, **EACH_STEP)
    slow = with_slow_steps(tmp_path)
    process = start(job, env=slow.environment())
    wait_for(process, WARNING)
    wait_for(process, "prefer step 20/40")
    wait_for(process, ": saved")
    kill(process)
    output = finish(job)
    resumed = re.search(r"prefer: starts \(continues after step (\d+)", output)
    assert resumed is not None, output
    assert int(resumed[1]) > 8
    assert "the model has left its reference" not in output
    url = f"{tmp_path}/runs/tiny"
    assert main(["status", url]) == 0
    assert capsys.readouterr().out.count(WARNING) == 1
    assert main(["report", url]) == 0
    assert Path(url, "report.html").read_text().count(WARNING) == 1


def test_a_stage_that_teaches_nothing_ends_and_says_why_also_when_it_resumes(
    tmp_path: Path,
) -> None:
    job = prefer_job(tmp_path, prefer__steps=30, prefer__lr=1e-20, prefer__min_lr=0.0, **EACH_STEP)
    output = ends_with(1, start(job))
    assert "prefer: nothing learns: after 20 steps" in output, output
    assert "--redo prefer" in output
    head = head_of(tmp_path)
    assert "prefer" not in head.stages
    again = ends_with(1, start(job))
    assert "continues after step" in again
    assert "prefer: nothing learns: after" in again
