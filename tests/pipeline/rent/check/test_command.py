"""`pion check` finds what would fail later: every bad input is a row that says how to fix it."""

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
from tests.pipeline.rent.check.checked_job import unknown, wrong
from tests.support.hub_server import READ_TOKEN

HUB_DATA = {"kind": "hub", "repo": "user/data"}


def test_a_good_job_passes_every_check(case, shown):
    code, rows = shown(case.path())
    names = "job,documents,conversations,the first,model,tokenizer,data.sources.0,sft.sources.0"
    assert list(rows) == [*names.split(","), "store", "run", "GPU memory"]
    assert (code, all(row["ok"] for row in rows.values())) == (0, True)
    assert not list(case.folder.glob("runs/**/probe*")), "the probe leaves nothing behind"


def test_every_mistake_of_the_job_file_is_said(case, capsys):
    path = str(case.path(pretrain__stps=3, sft__lr="fast"))
    assert show_check(path, [], on=None, force=False, as_json=False) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "did you mean `pretrain.steps`?" in printed
    assert "sft.lr" in printed


def test_a_mistake_that_several_checks_meet_is_said_once(case, shown):
    (case.folder / "talks.jsonl").write_text('{"say": "hello"}\n')
    code, rows = shown(case.path())
    assert (code, [name for name in rows if not rows[name]["ok"]]) == (2, ["sft.sources.0"])


def test_a_store_without_room_for_a_checkpoint(case, monkeypatch):
    monkeypatch.setattr("pipeline.run.preflight.free_bytes", lambda folder: 100_000)
    wrong(case.row("room"), "100 kB free", "one checkpoint of pretrain takes")


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
    is_down, words, case, hub, sky_home, shown, monkeypatch
):
    if is_down:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = {"model": {"from": "someone/model"}, "tokenizer": None, "pretrain": None}
    path = case.path(publish={"to": "hf://USER/m"}, **start)
    code, rows = shown(path)
    assert code == 2
    assert {"names", "sft.sources.0"} < rows.keys()
    code, rows = shown(path, sky_home.yaml())
    assert code == 2
    assert words in rows["job"]["words"]
    assert ("model.from=FOLDER, or model.from=RUN" in repr(rows.get("model.from"))) == is_down
    assert "export HF_TOKEN" in rows["credentials"]["words"]
    assert {"sft.sources.0", "store from there", "files", "recovery", "controller"} < rows.keys()


def test_a_tokenizer_with_more_entries_than_the_model(case):
    from pion.data.tokens.tokenizer import train_bpe

    train_bpe(["the cat sat over the house"] * 9, 290).save(case.folder / "tokenizer.json")
    row = case.row("tokenizer", tokenizer={"file": "tokenizer.json"}, model__vocab_size=260)
    wrong(row, "tokenizer.json", "260")


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
    late = [CheckRow("conversations", True, "counted")]
    monkeypatch.setattr(command, "check_rows", lambda job: time.sleep(0.1) or late)
    monkeypatch.setattr(command, "within", lambda seconds, work: work())
    assert late[0] in command.run_checks(case.job(), None)


def test_time_to_trace_a_model_is_not_counted(case, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.01)
    monkeypatch.setattr(command, "within", lambda seconds, work: work())
    monkeypatch.setattr(command, "traced_seconds", time.monotonic)  # it traces all the time
    traced = [CheckRow("model", True, "traced")]
    monkeypatch.setattr(command, "check_model", lambda job: time.sleep(0.3) or traced)
    assert traced[0] in command.run_checks(case.job(), None)


@pytest.mark.parametrize("error", [PionError("it is down"), OSError("a library's"), TimeoutError()])
def test_what_one_check_could_not_find_out_is_exit_code_1(case, monkeypatch, shown, error):
    def fails(job):
        raise error

    monkeypatch.setattr(command, "check_model", fails)
    code, rows = shown(case.path())
    assert (code, [name for name in rows if not rows[name]["checked"]]) == (1, ["model"])


def test_a_store_that_can_not_even_be_opened_in_time_is_no_mistake_and_nothing_is_rented(
    case, shown, monkeypatch
):
    forever = threading.Event()
    monkeypatch.setattr(command, "SECONDS", 0.1)
    monkeypatch.setattr(command, "open_store", lambda url: forever.wait())
    code, rows = shown(case.path())
    assert (code, [*rows]) == (1, ["checks"])
    assert (rows["checks"]["ok"], rows["checks"]["checked"]) == (None, False)
    assert rows["checks"]["words"].startswith("they did not start in time")
    assert "Run the same command again" in rows["checks"]["words"]
    job_file = SimpleNamespace(job=case.job(), path=case.path())
    with pytest.raises(BadInput, match=r"checks: see above\. Nothing"):
        require_checks(SimpleNamespace(job_file=job_file, sky_yaml=None), force=False)
    forever.set()


def test_a_token_that_may_not_publish_and_a_name_that_is_taken(case, hub, monkeypatch):
    publish = {"to": "hf://tester/model", "license": "apache-2.0"}
    hub.add_repo("tester/model")
    wrong(case.row("publish", publish=publish), "exists and is public")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    wrong(case.row("publish", publish=publish), "is read-only", "HF_TOKEN")
