"""A store that can't be used is refused before anything is written: exit 2, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import READ_TOKEN, USER, hub_server
from tests.pipeline.test_resume import finish, start, wait_for, write_job
from tests.s3_server import FaultProxy, S3Server


def refusal(folder: Path, store: str, *overrides: str) -> str:
    """What `pion run` says when it refuses to start."""
    process = start(write_job(folder, store=store, sft=None), *overrides)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert "prepare: starts" not in output
    return output


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://Not_A_Bucket/x", "Not_A_Bucket"),
        ("hf://only-a-user", "hf://user/repo"),
        ("file://relative/path", "needs an absolute path"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_named_with_the_right_form(
    tmp_path: Path, url: str, says: str
) -> None:
    assert says in refusal(tmp_path, url)


@pytest.mark.usefixtures("s3_store")
def test_a_missing_bucket_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    assert "aws s3 mb s3://no-such-bucket" in refusal(tmp_path, "s3://no-such-bucket/runs")


def test_a_bucket_that_denies_access_is_refused(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        proxy.deny("AccessDenied", 403)
        assert "denied" in refusal(tmp_path, f"s3://{s3.bucket()}/runs").lower()


def test_a_store_that_ignores_conditions_is_found_out_and_refused(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        proxy.ignored_headers = {"if-match", "if-none-match"}
        bucket = s3.bucket()
        assert "two machines" in refusal(tmp_path, f"s3://{bucket}/runs")
        listed = s3.client().list_objects_v2(Bucket=bucket)
        assert listed.get("KeyCount") == 0


def test_a_hub_repository_that_is_missing_or_only_readable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "hf")
        assert "repos create" in refusal(tmp_path, f"hf://{USER}/nothing")
        hub.add_repo(f"{USER}/state")
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        output = refusal(tmp_path, f"hf://{USER}/state")
        assert "write" in output
        assert READ_TOKEN not in output


def test_a_run_name_no_store_can_hold_is_refused(tmp_path: Path) -> None:
    assert "name" in refusal(tmp_path, str(tmp_path / "runs"), "name=a/b")


def test_a_job_that_contradicts_the_stored_one_shows_the_difference_and_the_fork(
    tmp_path: Path,
) -> None:
    finish(write_job(tmp_path, sft=None))
    head = tmp_path / "runs/tiny/HEAD.json"
    before = head.read_bytes()
    output = refusal(tmp_path, str(tmp_path / "runs"), "pretrain.lr=5e-3")
    assert "pretrain.lr: 0.01 → 0.005" in output
    assert "pion fork" in output
    assert head.read_bytes() == before


def test_a_run_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    finish(write_job(tmp_path, sft=None))
    head = tmp_path / "runs/tiny/HEAD.json"
    head.write_text(head.read_text().replace('"format": 1', '"format": 2'))
    before = head.read_bytes()
    assert "format version 2" in refusal(tmp_path, str(tmp_path / "runs"))
    assert head.read_bytes() == before


def test_a_checkpoint_of_a_newer_format_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    killed = start(write_job(tmp_path, sft=None), "pretrain.steps=4000")
    wait_for(killed, ": saved", lines=1)
    killed.kill()
    killed.communicate()
    run = tmp_path / "runs/tiny"
    manifest = max(run.glob("checkpoints/pretrain/*/manifest.json"), key=checkpoint_step)
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    output = refusal(tmp_path, str(tmp_path / "runs"), "pretrain.steps=4000")
    assert "format version 2" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def checkpoint_step(manifest: Path) -> int:
    return int(manifest.parent.name.partition("-")[0])
