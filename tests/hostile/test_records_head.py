"""A damaged HEAD, manifest, state or recorded job is named, and no command changes it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from pion.errors import BadInput
from pion.train.train_state import rng_states, set_rng_states
from pion.untrusted import LARGEST_JOB, LARGEST_RECORD
from pipeline.state.checkpoints.layout import MANIFEST, STATE
from pipeline.state.head import Head, StageRecord
from pipeline.state.heartbeat import Heartbeat
from pipeline.state.notes.stop_requests import clear_stops
from pipeline.state.record_json import EPOCHS, Damaged
from pipeline.state.workspace import MOST_DATA_FILES, MOST_FILES, read_files
from tests.hostile.attacks import DEPTH, ESCAPE, nested
from tests.hostile.hostile_run import JOB, NAME, NOW, full_head, path_of, replace
from tests.hostile.in_process import ends_with
from tests.hostile.records import (
    FILE,
    HEAD,
    LISTED,
    MODEL_STATE,
    RECORDS,
    REQUEST,
    REQUESTED,
    SFT,
)
from tests.support.jobs import tiny_dict

pytestmark = pytest.mark.usefixtures("restored")

REFUSED = [case for case in RECORDS["HEAD"].cases() if not RECORDS["HEAD"].allows(case)]
COMMANDS = [
    "status {run}",
    "status",
    "status {run} --json",
    "checkpoints {run}",
    "report {run}",
    "generate {run} --prompt a",
    "fork {run} new",
    "stop {run}",
    "run job.yaml store={store}",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", REFUSED[::151], ids=str)
def test_every_command_refuses_a_damaged_head(run, case, command, monkeypatch):
    folder = Path(run.store.url.removeprefix("file://"))
    monkeypatch.chdir(folder.parent)
    Path("job.yaml").write_text(run.read_job(JOB))
    Path("text").mkdir(exist_ok=True)
    Path("text/a.txt").write_text("a text\n\n" * 200)
    Path("talks.jsonl").write_text('{"messages": []}\n')
    data = case.on(HEAD)
    replace(run, "HEAD.json", data)
    output = ends_with(2, *command.format(run=run.url, store=folder).split())
    assert f"{NAME}/HEAD.json" in output
    assert "Nothing was changed" in output
    assert run.store.read(run.key("HEAD.json")) == data


@pytest.mark.parametrize(
    "data",
    [
        {"format": True},
        {"format": 4.0},
        {},
        {"format": 4, "owner": {}},
        {"format": 4, "checkpoints": [{}]},
    ],
    ids=str,
)
def test_an_object_that_is_no_head_is_damaged(data):
    with pytest.raises(Damaged, match=r"demo/HEAD\.json is damaged"):
        Head.from_json(json.dumps(data).encode(), f"{NAME}/HEAD.json")


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


# What HEAD says of stages and checkpoints: how it is changed, a command, and what the command says.
CHANGES = {
    "a stage whose checkpoint is not listed": (
        {"stages": {"pretrain": StageRecord("d", NOW, "checkpoints/pretrain/99-1")}},
        "fork {run} {folder}/fork --stage sft",
        "its HEAD does not list checkpoints/pretrain/99-1",
    ),
    "checkpoints of another stage": (
        {"checkpoints": (dataclasses.replace(full_head().checkpoints[0], stage="x"),)},
        "fork {run} {folder}/fork",
        "has no checkpoint",
    ),
    **{
        f"a {stage} result": (
            {"stages": {stage: StageRecord("d", NOW, None, result)}},
            "report {run}",
            f"{NAME}/HEAD.json is damaged: stages.{stage}.result.{place} should be",
        )
        for stage, result, place in [
            ("evaluate", {"ngram": {"order": 3, "loss": []}}, "ngram.loss"),
            ("publish", {"parameters": "many"}, "parameters"),
        ]
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_can_be_read_may_still_say_what_a_command_refuses(run, change, tmp_path):
    changes, command, words = CHANGES[change]
    replace(run, "HEAD.json", dataclasses.replace(run.read(), **changes).to_json())
    assert words in ends_with(2, *command.format(run=run.url, folder=tmp_path).split())
    ends_with(0, "status", run.url)


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\nb", ".hidden", "", "a//b", ESCAPE, "-rf"]
)
def test_a_name_that_no_store_has_is_damaged(name):
    data = json.dumps({**LISTED, "files": {name: FILE}}).encode()
    with pytest.raises(Damaged, match=r"^store/manifest\.json is damaged: files\."):
        read_files(data, "store/manifest.json")


def many_files(count):
    return json.dumps({**LISTED, "files": {f"f{n}": FILE for n in range(count)}}).encode()


def test_a_manifest_lists_a_bounded_number_of_files():
    assert len(read_files(many_files(MOST_FILES // 2), "manifest.json")) == MOST_FILES // 2
    words = r"manifest\.json is damaged: it lists 1,025 files, and 1,024"
    with pytest.raises(Damaged, match=words):
        read_files(many_files(MOST_FILES + 1), "manifest.json")
    assert len(read_files(many_files(5000), "files.json", MOST_DATA_FILES)) == 5000


MANIFESTS = {
    "deep": nested(DEPTH).encode(),
    "20,000 files": many_files(20_000),
    "no model": json.dumps({**LISTED, "files": {"state.json": FILE}}).encode(),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_commands_name_a_damaged_manifest(what, run, tmp_path):
    replace(run, f"{SFT}/{MANIFEST}", MANIFESTS[what])
    output = ends_with(2, "generate", f"{run.url}@sft", "--prompt", "a")
    assert SFT in output
    assert MANIFEST in output
    output = ends_with(1, "checkpoints", run.url, "--verify")
    assert "verified now" in output, "the other checkpoint is good"
    output = ends_with(2, "fork", run.url, f"{tmp_path}/fork", "--stage", "sft")
    assert "Nothing was forked" in output


# ---------------------------------------------------------------- state.json


def test_a_random_state_that_is_none_is_bad_input():
    device = torch.device("cpu")
    before = rng_states(device)
    for text in ("AAAA", "x", "", "\x00é"):
        with pytest.raises(BadInput, match="random state of cpu is damaged"):
            set_rng_states({"cpu": text}, device)
    assert rng_states(device) == before


@pytest.mark.parametrize("key", ["/etc/passwd", "../../../../etc/passwd", "..", "a/../b", "~/x"])
def test_the_tokenizer_of_a_state_is_inside_the_run(run, key):
    folder = path_of(run, SFT)
    (folder / STATE).write_text(json.dumps({**MODEL_STATE, "tokenizer": key}))
    output = ends_with(2, "generate", str(folder), "--prompt", "a")
    assert "state.json is damaged: tokenizer is not a possible value" in output


# ---------------------------------------------------------------- recorded jobs, inputs, requests


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\xff\xfe", "it is not UTF-8"), (b"#" * (LARGEST_JOB + 1), "it has more than 1,048,576")],
)
def test_a_recorded_job_is_a_text_of_limited_size(run, data, why):
    text = yaml.safe_dump(tiny_dict(name=NAME)) + "# comment\n" * (LARGEST_JOB // 20)
    replace(run, f"jobs/{JOB}.yaml", text.encode())
    assert run.read_job(JOB) == text
    replace(run, f"jobs/{JOB}.yaml", data)
    for code, command in ((2, "report"), (0, "status")):
        assert f"jobs/{JOB}.yaml is damaged: {why}" in ends_with(code, command, run.url)


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"inputs": 5}', b"\xff"])
def test_the_inputs_of_a_stage_are_an_object(run, data):
    replace(run, "stages/sft/abc.json", data)
    with pytest.raises(Damaged, match=r"stages/sft/abc\.json is damaged"):
        run.read_stage("sft", "abc")


def test_an_owner_with_hostile_requests_beats_on_and_a_person_clears_them(run):
    replace(run, "HEAD.json", full_head().to_json())
    replace(run, REQUESTED, nested(DEPTH).encode())
    replace(run, "requests/2.json", json.dumps({**REQUEST, "at": 1e300}).encode())
    owner = full_head().owner
    assert owner is not None
    heartbeat = Heartbeat(run, 1, owner, on_taken_over=lambda head: pytest.fail("still the owner"))
    heartbeat.beat()
    assert heartbeat.stop_request is None
    assert run.heartbeat(1)["at"] > NOW
    assert clear_stops(run) == 2
