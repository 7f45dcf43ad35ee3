"""The runs of a ladder are not predicted by the ladder that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.base.read_job import read_job
from pipeline.ladder.runs import Runs
from pipeline.state.stores import FileStore
from tests.support.whole_runs import write_job


def test_a_job_that_names_its_own_ladder_can_make_this_ladder(tmp_path: Path) -> None:
    path = str(write_job(tmp_path, evaluate__ladder="tiny"))
    started: list[Sequence[str]] = []

    def execute(arguments: Sequence[str]) -> int:
        started.append(arguments)
        return 0

    runs = Runs(FileStore(tmp_path / "runs"), path, [], execute)
    job, _ = runs.job(["name=tiny-ladder"])
    assert job.evaluate.ladder == "tiny"
    runs.run(job, ["name=tiny-ladder"], {})
    ((name, *overrides),) = started
    assert read_job(name, overrides).evaluate.ladder is None
