"""The text of `evaluate.text` must be on the rented machine too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from pion.errors import BadInput
from pipeline.base.read_job import read_job
from pipeline.job import Job
from pipeline.rent.check.inputs import check_files
from pipeline.rent.check.job import check_evaluate
from pipeline.rent.sky_yaml import SkyYaml
from tests.pipeline.base.conftest import export_base


def job_with(folder: Path, text: str) -> Job:
    export_base(folder / "base")
    content = {
        "name": "mine",
        "model": {"from": "base"},
        "sft": {"steps": 1, "warmup_steps": 0, "sources": [{"kind": "python-docs-qa"}]},
        "evaluate": {"text": text},
        "store": str(folder / "runs"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(content))
    return read_job(folder / "job.yaml")


def test_a_text_outside_the_workdir_is_not_copied(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    workdir.mkdir()
    (tmp_path / "notes.txt").write_text("a text")
    there = cast(SkyYaml, SimpleNamespace(path="rental.yaml", config={"workdir": str(workdir)}))
    with pytest.raises(BadInput, match=r"evaluate\.text: .*notes\.txt is outside .*work"):
        check_files(job_with(workdir, "../notes.txt"), there, None)
    (workdir / "notes.txt").write_text("a text")
    (row,) = check_files(job_with(workdir, "notes.txt"), there, None)
    assert row.ok


def test_a_text_that_can_not_be_read_is_found_before_anything_is_rented(tmp_path: Path) -> None:
    job = job_with(tmp_path, "notes.txt")
    with pytest.raises(BadInput, match=r"evaluate\.text: no such file or folder"):
        check_evaluate(job)
    (tmp_path / "notes.txt").write_text("a text")
    (row,) = check_evaluate(job)
    assert row.ok
    assert "notes.txt can be read" in row.words
