"""A model to start from in a folder travels with the job, or is refused before anything is rented.

The other files of a job are tried in test_rental.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.errors import BadInput
from pipeline.base.keep import keep_as_base
from pipeline.base.read_job import read_job
from pipeline.job import Job
from pipeline.rent.check.command import PRICED, run_checks
from pipeline.rent.check.inputs import check_base, check_files
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.pipeline.base.conftest import export_base
from tests.pipeline.rent.conftest import YAML, SkyHome
from tests.support.jobs import write_tiny_data

SFT = {"steps": 1, "warmup_steps": 0, "sources": [{"kind": "jsonl", "path": "talks.jsonl"}]}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with conversations and a model, which a rental copies."""
    folder = tmp_path / "checkout"
    (folder / "jobs").mkdir(parents=True)
    write_tiny_data(folder / "jobs")
    export_base(folder / "base")
    return folder


@pytest.fixture
def rental(sky_home: SkyHome, checkout: Path) -> SkyYaml:
    """A rental to which the checkout is copied."""
    return read_sky_yaml(sky_home.yaml(text=f"workdir: {checkout}\n" + YAML))


def job_from(checkout: Path, source: str, **changes: Any) -> Job:
    """Return the job in the folder `jobs` of the checkout that starts from `source`."""
    job = {"name": "mine", "model": {"from": source}, "sft": SFT, "store": f"{checkout}-runs"}
    path = checkout / "jobs" / "job.yaml"
    path.write_text(yaml.safe_dump(job | changes))
    return read_job(path)


def refused(job: Job, rental: SkyYaml) -> str:
    """Return what the check of files says against the job."""
    with pytest.raises(BadInput) as error:
        check_files(job, rental, str(job.folder / "job.yaml"))
    return str(error.value)


def test_a_model_in_the_workdir_travels_with_the_job(checkout: Path, rental: SkyYaml) -> None:
    job = job_from(checkout, "../base")
    (found,) = check_base(job, rental)
    assert found.ok
    (row,) = check_files(job, rental, str(job.folder / "job.yaml"))
    assert row.ok


def test_a_model_elsewhere_gets_one_message_before_anything_is_rented(
    checkout: Path, rental: SkyYaml
) -> None:
    elsewhere = export_base(checkout.parent / "elsewhere")
    for named in (str(elsewhere), "../../elsewhere"):
        message = refused(job_from(checkout, named), rental)
        assert message == (
            f"model.from: {elsewhere} is outside {checkout}, so it is not copied to the machine. "
            "Copy it into that folder, and name it by its path relative to the job file"
        )
    job = job_from(checkout, "../../elsewhere")
    rows = run_checks(job, rental, path=str(job.folder / "job.yaml"))
    assert [row.words for row in rows if row.ok is False and "model.from" in row.words] == [message]


def test_a_model_behind_a_link_is_elsewhere(checkout: Path, rental: SkyYaml) -> None:
    elsewhere = export_base(checkout.parent / "elsewhere")
    (checkout / "linked").symlink_to(elsewhere)
    assert f"{elsewhere} is outside" in refused(job_from(checkout, "../linked"), rental)
    weights = checkout / "base" / "model.safetensors"  # as in the cache of the Hub
    weights.replace(elsewhere / "blob")
    weights.symlink_to(elsewhere / "blob")
    assert f"{weights} is outside" in refused(job_from(checkout, "../base"), rental)


def test_a_model_named_by_its_place_on_this_machine_would_not_be_found(
    checkout: Path, rental: SkyYaml
) -> None:
    message = refused(job_from(checkout, str(checkout / "base")), rental)
    assert message.endswith("Name it by its path relative to the job file: ../base")


@pytest.mark.parametrize("pattern", ["/base", "*.safetensors"])
def test_a_model_that_is_left_out_of_the_copy_is_refused(
    checkout: Path, rental: SkyYaml, pattern: str
) -> None:
    (checkout / ".skyignore").write_text(f"{pattern}\n")
    message = refused(job_from(checkout, "../base"), rental)
    assert "model.from: .skyignore or .gitignore excludes " in message


def test_once_the_run_has_its_model_the_folder_may_be_anywhere(
    checkout: Path, rental: SkyYaml
) -> None:
    elsewhere = export_base(checkout.parent / "elsewhere")
    job = job_from(checkout, str(elsewhere))
    assert job.base is not None
    with pytest.raises(BadInput, match="is outside"):
        check_files(job, rental, None)
    run = RunState(open_store(job.store), job.name)
    keep_as_base(run, job.base, job.folder, lambda message: None, lambda work: work())  # type: ignore[arg-type]
    (row,) = check_files(job, rental, None)
    assert row.ok


def test_conversations_named_by_their_place_on_this_machine_would_not_be_found(
    checkout: Path, rental: SkyYaml
) -> None:
    talks = checkout / "jobs" / "talks.jsonl"
    source = {"kind": "jsonl", "path": str(talks)}
    job = job_from(checkout, "../base", sft=SFT | {"sources": [source]})
    with pytest.raises(BadInput, match=r"relative to the job file: talks\.jsonl"):
        check_files(job, rental, None)


def test_nobody_is_asked_for_prices_of_conversations_that_can_not_be_used(
    checkout: Path, rental: SkyYaml
) -> None:
    talks = checkout / "jobs" / "talks.jsonl"
    talks.write_text(talks.read_text().splitlines()[0])
    job = job_from(checkout, "../base", sft={"epochs": 1, "sources": SFT["sources"]})
    rows = {row.name: row for row in run_checks(job, rental)}
    assert rows["conversations"].ok is False
    assert "files" in rows
    assert not {*rows}.intersection(PRICED)
