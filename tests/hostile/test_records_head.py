"""HEAD.json with a bad value in any field is damaged: the file and the place are named."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from pion.errors import BadInput
from pion.untrusted import LARGEST_JOB, LARGEST_RECORD
from pipeline.state.head import Head, StageRecord, Trash
from pipeline.state.heartbeat import Heartbeat
from pipeline.state.notes.stop_requests import clear_stops
from pipeline.state.record_json import EPOCHS, Damaged
from tests.hostile.hostile_run import JOB, NAME, NOW, ends_with, full_head, pion, replace
from tests.hostile.record_attacks import DEPTH, attacks_on, nested
from tests.hostile.records import HEAD, REQUEST, REQUESTED, head_may
from tests.support.jobs import tiny_dict

pytestmark = pytest.mark.usefixtures("restored")


# ---------------------------------------------------------------- through the commands

REFUSED = [case for case in attacks_on(HEAD) if not head_may(case)]
COMMANDS = {
    "status": ("status", "{run}"),
    "status of all": ("status",),
    "json": ("status", "{run}", "--json"),
    "checkpoints": ("checkpoints", "{run}"),
    "report": ("report", "{run}"),
    "generate": ("generate", "{run}", "--prompt", "a"),
    "fork": ("fork", "{run}", "new"),
    "stop": ("stop", "{run}"),
    "run": ("run", "job.yaml", "store={store}"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", REFUSED[::151], ids=str)
def test_every_command_refuses_a_damaged_head(run, case, command, monkeypatch, capsys):
    folder = Path(run.store.url.removeprefix("file://"))
    monkeypatch.chdir(folder.parent)
    job = run.read_job("0123")
    Path("job.yaml").write_text(job)
    Path("text").mkdir(exist_ok=True)
    Path("text/a.txt").write_text("a text\n\n" * 200)
    Path("talks.jsonl").write_text('{"messages": []}\n')
    data = case.on(HEAD)
    replace(run, "HEAD.json", data)
    arguments = [part.format(run=run.url, store=folder) for part in COMMANDS[command]]
    output = ends_with(2, capsys, *arguments)
    assert f"{NAME}/HEAD.json" in output
    assert "Nothing was changed" in output
    assert run.store.read(run.key("HEAD.json")) == data


# ---------------------------------------------------------------- the whole file


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe{}",
        b"[]",
        b"5",
        b"{",
        nested(100_000).encode(),
        b'{"format": true}',
        b'{"format": 4.0}',
        b"{}",
        b'{"format": 4, "owner": {}}',
        b'{"format": 4, "checkpoints": [{}]}',
        '{"format": 4}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_head_is_damaged(run, data, capsys):
    replace(run, "HEAD.json", data)
    output = ends_with(2, capsys, "status", run.url)
    assert f"{NAME}/HEAD.json is damaged" in output


@pytest.mark.parametrize("key", ["../../etc", "/etc/passwd", "a//b", "a\nb", "", ".", "a/.lock-x"])
@pytest.mark.parametrize("field", ["checkpoints", "trash", "forked", "stages"])
def test_a_key_that_no_store_has_is_damaged(field, key):
    head = full_head()
    changes = {
        "checkpoints": (dataclasses.replace(head.checkpoints[0], key=key),),
        "trash": (Trash(key, 0.0),),
        "forked": key,
        "stages": {"sft": dataclasses.replace(head.stages["pretrain"], checkpoint=key)},
    }
    head = dataclasses.replace(head, **{field: changes[field]})
    with pytest.raises(
        BadInput, match=rf"HEAD\.json is damaged: {field}.* is not a possible value"
    ):
        Head.from_json(head.to_json(), "HEAD.json")


# ---------------------------------------------------------------- honest files


def test_a_head_with_nan_is_written_with_null():
    head = full_head()
    nan = {"held_out_loss": float("nan"), "other": float("inf"), "good": 2.5}
    measured = dataclasses.replace(
        head,
        checkpoints=(dataclasses.replace(head.checkpoints[0], metrics=nan),),
        stages={"evaluate": dataclasses.replace(head.stages["evaluate"], result={"a": [nan]})},
    )
    found = Head.from_json(measured.to_json(), "HEAD.json")
    read = {"held_out_loss": None, "other": None, "good": 2.5}
    assert found.checkpoints[0].metrics == read
    assert found.stages["evaluate"].result == {"a": [read]}


def test_a_head_of_half_the_limit_is_read():
    head = full_head()

    def entry(number):
        return dataclasses.replace(head.checkpoints[0], key=f"checkpoints/sft/{number}-1")

    many = tuple(map(entry, range(2000)))
    write_ids = ("w" * (LARGEST_RECORD // 2),)
    large = dataclasses.replace(head, checkpoints=many, epoch=EPOCHS // 2, write_ids=write_ids)
    assert Head.from_json(large.to_json(), "HEAD.json") == large


# ---------------------------------------------------------------- recorded jobs, inputs and results


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\xff\xfe", "it is not UTF-8"), (b"#" * (LARGEST_JOB + 1), "it has more than 1,048,576")],
)
def test_a_recorded_job_is_a_text_of_limited_size(run, data, why, capsys):
    replace(run, f"jobs/{JOB}.yaml", data)
    for code, command in ((2, "report"), (0, "status")):
        output = ends_with(code, capsys, command, run.url)
        assert f"jobs/{JOB}.yaml is damaged: {why}" in output


def test_a_recorded_job_of_half_the_limit_is_read(run):
    text = yaml.safe_dump(tiny_dict(name=NAME)) + "# comment\n" * (LARGEST_JOB // 20)
    replace(run, "jobs/large.yaml", text.encode())
    assert run.read_job("large") == text


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b'{"inputs": 5}', b"\xff", nested(DEPTH).encode()]
)
def test_the_inputs_of_a_stage_are_an_object(run, data):
    replace(run, "stages/sft/abc.json", data)
    with pytest.raises(Damaged, match=r"stages/sft/abc\.json is damaged"):
        run.read_stage("sft", "abc")


@pytest.mark.parametrize(
    ("stage", "result", "place"),
    [
        ("evaluate", {"sft": {"bits_per_byte": "x"}}, "sft.bits_per_byte"),
        ("evaluate", {"ngram": {"order": 3, "loss": []}}, "ngram.loss"),
        ("publish", {"parameters": "many"}, "parameters"),
    ],
)
def test_a_report_names_a_result_that_is_no_number(run, stage, result, place, capsys):
    head = run.read()
    stages = {**head.stages, stage: StageRecord("d", NOW, None, result)}
    replace(run, "HEAD.json", dataclasses.replace(head, stages=stages).to_json())
    output = ends_with(2, capsys, "report", run.url)
    assert f"{NAME}/HEAD.json is damaged: stages.{stage}.result.{place} should be" in output
    assert pion(capsys, "status", run.url)[0] == 0


# ---------------------------------------------------------------- requests


def test_an_owner_with_hostile_requests_beats_on_and_a_person_clears_them(run):
    replace(run, "HEAD.json", full_head().to_json())
    replace(run, REQUESTED, nested(DEPTH).encode())
    replace(run, "requests/2.json", json.dumps({**REQUEST, "at": 1e300}).encode())
    owner = full_head().owner
    assert owner is not None
    heartbeat = Heartbeat(run, 1, owner, on_taken_over=lambda head: pytest.fail("still the owner"))
    heartbeat.beat()
    assert heartbeat.stop_request is None
    found = run.heartbeat(1)
    assert found["at"] > NOW
    assert clear_stops(run) == 2
