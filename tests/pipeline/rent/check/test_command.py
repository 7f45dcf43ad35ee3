"""`pion check` finds what would fail later: every bad input is a row that says how to fix it."""

import json
import math
import threading
import time
from types import SimpleNamespace

import pytest

from pion.errors import BadInput, PionError
from pipeline.rent.check import command
from pipeline.rent.check.command import CheckRow, show_check
from pipeline.rent.check.job import check_data
from pipeline.rent.managed.request import require_checks
from pipeline.state.stores import FileStore
from tests.pipeline.rent.check.checked_job import unknown, wrong
from tests.support.hub_server import READ_TOKEN
from tests.support.light_run import JOB, light_run

HUB_DATA = {"kind": "hub", "repo": "user/data"}


def test_a_good_job_passes_every_check(case, capsys):
    assert show_check(str(case.path()), [], on=None, force=False, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        "job",
        "documents",
        "conversations",
        "the first",
        "model",
        "tokenizer",
        "data.sources.0",
        "sft.sources.0",
        "store",
        "run",
        "GPU memory",
    ]
    assert all(row["ok"] for row in rows)
    assert not list(case.folder.glob("runs/**/probe*")), "the probe leaves nothing behind"


def test_every_mistake_of_the_job_file_is_said(case, capsys):
    path = str(case.path(pretrain__stps=3, sft__lr="fast"))
    assert show_check(path, [], on=None, force=False, as_json=False) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "did you mean `pretrain.steps`?" in printed
    assert "sft.lr" in printed


def test_a_mistake_that_several_checks_meet_is_said_once(case, capsys):
    (case.folder / "talks.jsonl").write_text('{"say": "hello"}\n')
    assert show_check(str(case.path()), [], on=None, force=False, as_json=True) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if row["ok"] is False] == ["sft.sources.0"]


def test_a_store_without_room_for_a_checkpoint(case, monkeypatch):
    monkeypatch.setattr("pipeline.run.preflight.free_bytes", lambda folder: 100_000)
    wrong(case.row("room"), "100 kB free", "one checkpoint of pretrain takes")


def test_a_budget_that_run_would_not_start_with(case, monkeypatch):
    monkeypatch.delenv("PION_DOLLARS_PER_HOUR", raising=False)
    assert case.row("budget", budget__dollars=5.0, budget__dollars_per_hour=1.0) is None
    light_run(FileStore(case.folder / "runs"), "tiny")
    wrong(case.row("budget", budget__hours=1e-9), "The budget is spent", "raise budget.hours")


def test_a_pipe_gets_whole_lines(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    command.print_rows([CheckRow("a", True, "b"), CheckRow("data", False, "word " * 50 + "end")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["✓  a     b", "✗  data  " + "word " * 50 + "end"]


def test_every_source_is_looked_at(case):
    nowhere = {"kind": "text", "path": "nowhere"}
    job = case.job(data__sources=[nowhere, {"kind": "text", "path": "text"}, nowhere])
    found = {row.name: row.ok for row in check_data(job)}
    named = {f"data.sources.{n}": ok for n, ok in enumerate((False, True, False))}
    assert found == named | {"sft.sources.0": True}


def test_a_hub_out_of_reach_is_not_found_out(case, hub, monkeypatch):
    hub.fail("/api/datasets", status=503, times=99)
    row = case.row("data.sources.0", data__sources=[HUB_DATA])
    unknown(row, "user/data", "can't be reached")


@pytest.mark.parametrize(("is_down", "words"), [(True, "reached"), (False, "no such repository")])
def test_what_this_machine_alone_finds_is_said_next_to_a_model_that_the_hub_does_not_give(
    is_down, words, case, hub, sky_home, capsys, monkeypatch
):
    if is_down:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = {"model": {"from": "someone/model"}, "tokenizer": None, "pretrain": None}
    path, rental = str(case.path(publish={"to": "hf://USER/m"}, **start)), str(sky_home.yaml())
    assert show_check(path, [], on=None, force=False, as_json=True) == 2
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"names", "sft.sources.0"} < rows.keys()
    assert show_check(path, [], on=rental, force=False, as_json=True) == 2
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert words in rows["job"]["words"]
    assert ("model.from=FOLDER, or model.from=RUN" in repr(rows.get("model.from"))) == is_down
    assert "export HF_TOKEN" in rows["credentials"]["words"]
    assert {"sft.sources.0", "store from there", "files", "recovery", "controller"} < rows.keys()


def test_a_tokenizer_with_more_entries_than_the_model(case):
    from pion.data.tokens.tokenizer import train_bpe

    train_bpe(["the cat sat over the house"] * 9, 290).save(case.folder / "tokenizer.json")
    row = case.row("tokenizer", tokenizer={"file": "tokenizer.json"}, model__vocab_size=260)
    wrong(row, "tokenizer.json", "260")


def test_prepared_data_needs_no_source_any_more(case):
    light_run(FileStore(case.folder / "runs"), JOB["name"])
    for path in (case.folder / "text").iterdir():
        path.unlink()
    assert case.row("data") == CheckRow("data", True, "already prepared, in the store")
    assert "done prepare, pretrain; sft at step 5" in case.row("run").words


def test_a_change_that_would_invalidate_committed_work(case):
    light_run(FileStore(case.folder / "runs"), JOB["name"])
    wrong(case.row("store", pretrain__lr=2e-2), "pretrain.lr: 0.01 → 0.02", "--redo pretrain")


def test_a_store_that_is_down_is_not_waited_for(case, proxy, s3, monkeypatch):
    monkeypatch.setattr("pipeline.rent.check.job.STORE_SECONDS", 0.3)
    proxy.fail(".", times=math.inf, status=503)
    wrong(case.row("store", store=f"s3://{s3.bucket()}"), "can't be reached")


def test_what_does_not_answer_in_time_is_not_found_out(case, hub, monkeypatch):
    case.row("store")  # the first imports take a while
    monkeypatch.setattr(command, "SECONDS", 0.3)
    checked = threading.Event()
    hub.before("/api/datasets", lambda: checked.wait(60), times=9)
    rows = command.run_checks(case.job(data__sources=[HUB_DATA]), None)
    checked.set()
    unknown(next(row for row in rows if row.name == "data"), "no answer in time")


def test_conversations_in_files_have_the_time_that_a_first_start_takes(case, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.0)
    counted = threading.Event()

    def count(job):
        counted.set()
        return [CheckRow("conversations", True, "counted")]

    monkeypatch.setattr(command, "check_rows", count)
    monkeypatch.setattr(command, "within", lambda seconds, work: work())
    rows = command.run_checks(case.job(), None)
    assert CheckRow("conversations", True, "counted") in rows


def test_time_to_trace_a_model_is_not_counted(case, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.01)
    monkeypatch.setattr(command, "within", lambda seconds, work: work())
    monkeypatch.setattr(command, "traced_seconds", time.monotonic)  # it traces all the time
    traced = [CheckRow("model", True, "traced")]
    monkeypatch.setattr(command, "check_model", lambda job: time.sleep(0.3) or traced)
    assert traced[0] in command.run_checks(case.job(), None)


@pytest.mark.parametrize("error", [PionError("it is down"), OSError("a library's"), TimeoutError()])
def test_what_one_check_could_not_find_out_is_exit_code_1(case, monkeypatch, capsys, error):
    def fails(job):
        raise error

    monkeypatch.setattr(command, "check_model", fails)
    assert show_check(str(case.path()), [], on=None, force=False, as_json=True) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if not row["checked"]] == ["model"]


@pytest.fixture
def store_that_hangs(monkeypatch):
    """Let no store be opened, and let the checks wait for a tenth of a second."""
    forever = threading.Event()
    monkeypatch.setattr(command, "SECONDS", 0.1)
    monkeypatch.setattr(command, "open_store", lambda url: forever.wait())
    yield
    forever.set()


@pytest.mark.usefixtures("store_that_hangs")
def test_a_store_that_can_not_even_be_opened_in_time_is_no_mistake_and_is_not_waited_for(
    case, capsys
):
    assert show_check(str(case.path()), [], on=None, force=False, as_json=True) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["ok"], row["checked"]) == ("checks", None, False)
    assert row["words"].startswith("they did not start in time")
    assert "Run the same command again" in row["words"]


@pytest.mark.usefixtures("store_that_hangs")
def test_a_machine_is_not_rented_if_no_check_could_begin(case):
    job_file = SimpleNamespace(job=case.job(), path=case.path())
    order = SimpleNamespace(job_file=job_file, sky_yaml=None)
    with pytest.raises(BadInput, match=r"checks: see above\. Nothing"):
        require_checks(order, force=False)


def test_a_token_that_may_not_publish_and_a_name_that_is_taken(case, hub, monkeypatch):
    publish = {"to": "hf://tester/model", "license": "apache-2.0"}
    hub.add_repo("tester/model")
    wrong(case.row("publish", publish=publish), "exists and is public")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    wrong(case.row("publish", publish=publish), "is read-only", "HF_TOKEN")
