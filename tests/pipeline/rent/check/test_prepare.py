"""What `pion check --on` says of text that a machine with GPUs would have to tokenize."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.job.digest import digest_job
from pipeline.rent.check import CheckRow, prepare
from pipeline.rent.check.machines import check_machines
from pipeline.rent.check.prepare import check_prepare
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.shared.speeds import PastPreparing, keep_prepare_speed
from pipeline.state.stores import FileStore
from tests.paths import SKY
from tests.pipeline.rent.check.checked_job import Case, unknown
from tests.pipeline.rent.conftest import SkyHome
from tests.support.sky_catalog import Price
from tests.support.states import someone

HUB = [{"kind": "hub", "repo": "user/data"}]


@pytest.fixture
def a40(sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch) -> SkyYaml:
    """A rental with a GPU, for which no text is too little to be mentioned."""
    monkeypatch.setattr(prepare, "LITTLE_BYTES", 0)
    sky_home.sell({"A40": Price(spot=None, on_demand=3600.0)})
    return read_sky_yaml(sky_home.yaml("accelerators: A40"))


def rows(case: Case, on: SkyYaml, **changes: Any) -> list[CheckRow]:
    return check_prepare(case.job(**changes), on, "jobs/mine.yaml", force=False)


def finish_prepare(case: Case, name: str, report: dict[str, Any]) -> None:
    """Let a run of the case's store have prepared its data, with that report."""
    claim = claim_run(RunState(FileStore(case.folder / "runs"), name), someone())
    digest = digest_job(case.job()).stages["prepare"]
    claim.finish_stage("prepare", digest, {"pretrain": report})
    claim.release()


def test_an_unmeasured_speed_gives_no_hours_and_no_dollars(case: Case, a40: SkyYaml) -> None:
    (row,) = rows(case, a40)
    files = [*(case.folder / "text").iterdir(), case.folder / "talks.jsonl"]
    kb = sum(file.stat().st_size for file in files) / 1e3
    unknown(row, f"{kb:.3g} kB of text", "at a speed that was not measured yet")
    unknown(row, "pion launch jobs/mine.yaml --on sky/cpu-prepare.yaml")
    assert "$" not in row.words


def test_the_newest_measured_speed_gives_seconds_and_dollars(case: Case, a40: SkyYaml) -> None:
    files = [*(case.folder / "text").iterdir(), case.folder / "talks.jsonl"]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    keep_prepare_speed(
        FileStore(case.folder / "runs"), PastPreparing("other", 1e9, megabytes / 120, 8)
    )
    (row,) = rows(case, a40)  # which has as many vCPUs
    unknown(row, ": 2 min", "measured on 8 cores in run other", "$120.00 at $3600.00/h")
    assert "at least" not in row.words
    assert "estimated" not in row.words


def test_the_speed_of_another_number_of_cores_is_scaled_to_the_machine(
    case: Case, a40: SkyYaml
) -> None:
    files = [*(case.folder / "text").iterdir(), case.folder / "talks.jsonl"]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    slow = PastPreparing("other", 1e9, megabytes / 120, 2)
    keep_prepare_speed(FileStore(case.folder / "runs"), slow)
    (row,) = rows(case, a40)
    unknown(row, ": 30 s at", "measured on 2 cores in run other", "$30.0")
    unknown(row, "estimated for the 8 vCPUs of 1 × A40 on demand")
    unknown_cores = PastPreparing("other", 1e9, megabytes / 120, 0)
    keep_prepare_speed(FileStore(case.folder / "runs"), unknown_cores)
    (row,) = rows(case, a40)
    unknown(row, ": 2 min")
    assert "estimated" not in row.words


def test_what_is_not_known_is_not_counted(case: Case, a40: SkyYaml) -> None:
    (row,) = rows(case, a40, data__sources=HUB)
    unknown(row, "at least", "data.sources.0 (size not known)")
    (row,) = rows(case, a40, data__sources=HUB, sft__sources=HUB)
    assert row.words.startswith("data.sources.0, sft.sources.0 (size not known) will be")


def test_compressed_files_have_more_text_than_bytes(case: Case, a40: SkyYaml) -> None:
    packed = case.folder / "talks.jsonl.gz"
    packed.write_bytes(gzip.compress((case.folder / "talks.jsonl").read_bytes()))
    (row,) = rows(case, a40, sft__sources=[{"kind": "jsonl", "path": packed.name}])
    unknown(row, "at least")


def test_little_text_is_no_warning(
    case: Case, a40: SkyYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "LITTLE_BYTES", 10**6)
    (row,) = rows(case, a40)
    assert row.ok
    assert "cpu-prepare" not in row.words


def test_a_run_that_has_prepared_is_not_warned_about(case: Case, a40: SkyYaml) -> None:
    finish_prepare(case, "tiny", {})
    assert rows(case, a40) == []


def test_text_that_another_run_has_prepared_is_not_warned_about_until_it_changes(
    case: Case, a40: SkyYaml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["run", str(case.path(name="other", sft=None)), "--until", "prepare"]) == 0
    assert rows(case, a40, sft=None) == []
    (case.folder / "text" / "more.txt").write_text("And more.\n\n" * 9)
    (row,) = rows(case, a40, sft=None)
    assert row.ok is None


def test_text_that_is_not_there_is_left_to_the_check_of_data(case: Case, a40: SkyYaml) -> None:
    assert rows(case, a40, data__sources=[{"kind": "text", "path": "nothing"}]) == []


def test_a_machine_without_a_gpu_may_tokenize_and_needs_no_memory_of_a_gpu(
    case: Case, sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    sky_home.sell({}, cpu_prices={"cpu3c-8-16": 0.24})
    on = read_sky_yaml(SKY / "cpu-prepare.yaml")
    assert rows(case, on) == []
    machines = [row for row in check_machines(case.job(), on, force=False) if "CPU" in row.name]
    assert machines
    assert all(row.ok is not False for row in machines)
