"""The machine that is rented must be able to read the model that a run starts from, and the text
of `evaluate.text`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from pion.errors import BadInput
from pipeline.base.keep import keep_as_base
from pipeline.base.read_job import read_job
from pipeline.job import Job
from pipeline.rent.check.inputs import check_base, check_files
from pipeline.rent.check.job import check_evaluate
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.pipeline.base.conftest import export_base
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, hub_server

SFT = {"steps": 1, "warmup_steps": 0, "sources": [{"kind": "python-docs-qa"}]}


def on(**secrets: str | None) -> SkyYaml:
    """A rental to which these secrets are passed on."""
    return cast(SkyYaml, SimpleNamespace(secrets=secrets))


def job_from(folder: Path, source: str, **more: Any) -> Job:
    content = {"name": "mine", "model": {"from": source}, "sft": SFT, **more}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content | {"store": str(folder / "runs")}))
    return read_job(path)


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the gated model someone/gated, which this machine can read."""
    folder = export_base(tmp_path / "base")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with hub_server() as hub:
        hub.add_repo("someone/gated", "model", files, gated=True)
        hub.granted = {READ_TOKEN}
        hub.use(monkeypatch, tmp_path / "hf", token=READ_TOKEN)
        yield hub


def test_a_gated_model_is_asked_for_with_the_token_that_the_rental_gets(
    gated: HubServer, tmp_path: Path
) -> None:
    job = job_from(tmp_path, "someone/gated")
    (row,) = check_base(job, on(HF_TOKEN=READ_TOKEN), {})
    assert "can be read with the token that the rental gets" in row.words
    with pytest.raises(BadInput, match="the rental would have no Hub token: accept its terms"):
        check_base(job, on(), {})
    with pytest.raises(BadInput, match="has no access: accept its terms on https://hugg"):
        check_base(job, on(HF_TOKEN=None), {"HF_TOKEN": WRITE_TOKEN})


def test_once_the_run_has_its_model_no_token_is_needed(gated: HubServer, tmp_path: Path) -> None:
    job = job_from(tmp_path, "someone/gated")
    assert job.base is not None
    run = RunState(open_store(job.store), job.name)
    keep_as_base(run, job.base, tmp_path, lambda message: None, lambda work: work())  # type: ignore[arg-type]
    gated.requests.clear()
    (row,) = check_base(read_job(tmp_path / "job.yaml"), on(), {})
    assert "in the run's store" in row.words
    assert not gated.requests


def test_a_model_of_this_machine_is_refused_for_a_rental(tmp_path: Path) -> None:
    from tests.support.finished_run import make_run

    make_run(tmp_path / "elsewhere")
    job = job_from(tmp_path, f"file://{tmp_path}/elsewhere/demo")
    assert check_base(job, None)[0].ok
    with pytest.raises(BadInput, match="is on this machine only"):
        check_base(job, on())


# ---------------------------------------------------------------- the text to compare on


def job_with(folder: Path, text: str) -> Job:
    export_base(folder / "base")
    return job_from(folder, "base", evaluate={"text": text})


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
