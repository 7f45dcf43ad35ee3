"""The page's data has what a run measured and what happened to it, as numbers and safe texts."""

import dataclasses
import json

import pytest

from pipeline.cost.costs import Costs
from pipeline.job import Job
from pipeline.report.history import RunHistory
from pipeline.report.page_data import MOST_SAMPLES, page_data
from pipeline.state.head import CheckpointEntry, Head, SkippedRows, StageRecord
from pipeline.state.notes.deadline import RunDeadline
from pipeline.state.owner import Author
from tests.pipeline.report.test_model_card import (
    JOB,
    RESULTS,
    card_of,
    card_of_history,
    costs_of_two_machines,
    history_of,
)

# What `run_status` says of a released run.
STATUS = {"notes": [], "last_commit_age": 0.0}
STATUS |= dict.fromkeys(("stop", "owner_running", "heartbeat_age", "progress"))


def row(step, **measured):
    """Return a row of metrics. Another machine took over after step 250."""
    return {"step": step, "epoch": 1 + (step > 250), "at": 0.3 * step, **measured}


METRICS = {
    "pretrain": [row(s, loss=8 / s + 3, tokens_per_second=5000.0) for s in range(10, 481, 10)]
    + [row(s, held_out_loss=3.3) for s in (48, 240, 480)],
    "sft": [row(s, loss=2 + 1 / s, tokens_per_second=4800.0) for s in range(10, 121, 10)],
}
PROMPT = "Return a"


def sample_row(step, text, prompt=PROMPT):
    return row(step, sample={"step": step, "prompt": prompt, "text": text})


SAMPLES = [sample_row(step, f" sample of step {step}.") for step in range(48, 481, 48)]
TRAINED = CheckpointEntry("pretrain", 480, 1, "0123456789abcdef", "k", 0.0, 9, "sha")
DONE = Head(
    checkpoints=(TRAINED,),
    stages={
        "pretrain": StageRecord("0123456789abcdef", 60.0, "k"),
        "evaluate": StageRecord("ee", 90.0, result=RESULTS),
        "publish": StageRecord(
            "ff", 99.0, result={"parameters": 5_123_456, "path": "published/demo"}
        ),
    },
)
EVENTS = [
    {"event": "training", "stage": "pretrain", "epoch": 1, "at": 0.0, "device": "2-core CPU"},
    {"event": "phase", "name": "evaluate", "seconds": 33.0, "epoch": 1, "at": 90.0},
    {"event": "phase", "name": "first step", "seconds": 41.2, "total": True, "epoch": 1, "at": 0.0},
]


def history(*, samples=SAMPLES, stage="pretrain", events=(), **fields):
    """Return a run, with these samples of `stage` and these events after the usual ones."""
    metrics = METRICS | {stage: [*METRICS[stage], *samples]}
    metrics = {name: sorted(rows, key=lambda row: row["step"]) for name, rows in metrics.items()}
    usual = RunHistory(
        known_job=Job.model_validate(JOB),
        url="file:///runs/demo",
        head=DONE,
        events=[*EVENTS, *events],
        metrics=metrics,
        costs=Costs((), {}),
        status=STATUS,
    )
    return dataclasses.replace(usual, **fields)


def told(**fields):
    """Return the page's data, as the browser reads it."""
    return json.loads(json.dumps(page_data(history(**fields))))


def texts(value):
    """Yield all texts in a value, with the keys."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def titles(data):
    return [section["title"] for section in (*data["measured"], *data["record"])]


def blocks(data, title):
    """Return the content of the section with that title."""
    sections = (*data["measured"], *data["record"])
    (found,) = (section["blocks"] for section in sections if section["title"] == title)
    return list(found)


def test_it_has_the_metrics_of_each_stage_and_where_attempts_begin():
    data = told()
    assert data["metrics"]["pretrain"] == ["loss", "tokens_per_second", "held_out_loss"]
    assert data["metrics"]["sft"] == ["loss", "tokens_per_second"]
    assert data["attempts"] == {"pretrain": [10, 260], "sft": [10]}
    assert data["tokens_per_step"] == {"pretrain": 2048, "sft": 16384}
    # The newest step of a run without heartbeats is told with the job's steps.
    summary = data["summary"]
    assert (summary["stage"], summary["step"], summary["steps"]) == ("sft", 120, 120)


def test_it_has_results_samples_stages_machines_and_paths():
    every = "\n".join(texts(told()))
    for shown in (
        "5.12M",
        "2.143 ± 0.014",
        "4-gram",
        "93.0 % ± 1.2",
        "its data can't be had: no network",
        " sample of step 480.",
        "0123456789ab",
        "2-core CPU",
        "1 min 15 s",
        "from the start to the first step",
        "published/demo",
    ):
        assert shown in every, shown


def test_the_figures_are_those_of_the_whole_run():
    figures = dict(told(costs=costs_of_two_machines(36.0))["figures"])
    assert figures == {
        "Parameters": "5.12M",
        "Tokens trained on": "2.95M",
        "Bits per byte": "2.143",
        "Time": "1 min 30 s",
        "Cost": "$0.90",
        "Useful time": "0.0 %",
    }


@pytest.mark.parametrize(
    ("at", "expected"),
    [(99.0 + 7560, "met, 2 h 06 min early"), (39.0, "missed by 1 min 00 s"), (None, None)],
)
def test_it_says_whether_the_deadline_was_met(at, expected):
    record = RunDeadline(at, 60.0, 0.0, Author("host", 7, "ann"), "pion launch")
    deadline = dataclasses.asdict(record) | {"watcher": None, "at_risk_from": None}
    done = {stage: StageRecord("d", 9.0) for stage in Job.model_validate(JOB).stages}
    head = dataclasses.replace(DONE, stages=done | DONE.stages)
    due = told(head=head, deadline=deadline)["summary"]["deadline"]
    if expected is None:
        assert due is None
    else:
        assert due == {"at": at, "ended": expected, "saw": None}
        assert told(deadline=deadline)["summary"]["deadline"]["ended"] is None


def test_samples_shown_at_first_are_spread_evenly_from_the_first_to_the_last():
    samples = told()["samples"]
    assert [sample["step"] for sample in samples] == list(range(480, 0, -48))
    first = [sample["step"] for sample in samples if sample["first"]]
    assert first == [480, 384, 288, 240, 144, 48]


def test_of_many_samples_the_newest_and_the_spread_ones_are_kept_by_prompt():
    many = [sample_row(s, " a.") for s in range(1, 101)]
    other = [sample_row(s, " b.", prompt="Other") for s in range(1, 101)]
    samples = told(samples=[*many, *other])["samples"]
    steps = [sample["step"] for sample in samples if sample["prompt"] == PROMPT]
    assert steps == sorted(steps, reverse=True)
    assert {1, 21, 41, 60, 80, 100} <= set(steps)
    assert MOST_SAMPLES <= len(samples) <= MOST_SAMPLES + 12
    prompts = [sample["prompt"] for sample in samples]
    assert prompts == sorted(prompts, key=[PROMPT, "Other"].index)


def test_no_text_has_control_characters_or_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-token")
    attack = "\x1b[31m a-very-secret-token </script>"
    event = {"event": "changed", "epoch": 2, "at": 200.0, "changes": [attack], attack: attack}
    sample, long = sample_row(1, attack, prompt=attack), {"many": "x" * 9000}
    data = told(samples=[sample], events=[event | long], stage="sft")
    assert len(data["events"][0]["text"]) <= 2001
    assert data["samples"][0]["text"].startswith("\n"), "an answer begins a new line"
    every = "\n".join(texts(data))
    assert "\x1b" not in every
    assert "a-very-secret-token" not in every
    assert every.count("<HF_TOKEN> </script>") >= 4


def test_a_run_that_has_only_begun_has_a_page():
    data = told(head=Head(), metrics={})
    assert data["name"] == "demo"
    assert (data["samples"], data["metrics"], data["summary"]["step"]) == ([], {}, None)


def test_a_run_whose_job_is_not_known_has_a_page():
    data = told(known_job=None)
    assert (data["measured"], data["tokens_per_step"]) == ([], {})
    assert dict(data["figures"]) == {"Parameters": "5.12M"}
    assert blocks(data, "Stages")


def test_cost_is_told_by_cause_and_by_machine():
    data = told(costs=costs_of_two_machines(36.0))
    (boot,) = data["cost"]["causes"]
    assert (boot["cause"], boot["means"]) == ("boot", "until the first step")
    assert (boot["seconds"], boot["dollars"]) == (90.0, 0.9)
    assert data["cost"]["words"].startswith("1 min 30 s, $0.90")
    first, second = data["machines"]
    assert first["what"] == "A40 on RunPod/<b>CA</b>, spot"
    assert second["what"].startswith("RTXA4000 on RunPod")
    assert (first["price"], first["useful"]) == (36.0, 0.0)
    assert data["paid"] == [[1000.0, 1030.0, 36.0], [2000.0, 2060.0, 36.0]]
    # Without prices there are hours and no dollars.
    data = told(costs=costs_of_two_machines(None))
    assert dict(data["figures"])["Time"] == "1 min 30 s"
    assert "Cost" not in dict(data["figures"])
    assert (data["cost"]["dollars"], data["machines"][0]["dollars"]) == (None, None)
    assert "$" not in "".join(texts(data))


@pytest.mark.parametrize(
    ("kind", "field", "title"),
    [("hop", "receipt", "Hops"), ("changed", "changes", "Changes of code")],
)
def test_receipts_of_hops_and_changes_of_code_are_told_line_by_line(kind, field, title):
    lines = ["hop: 1 × A40 on <b>a</b> → 2 × A4000 on b", "torch <1> → 2"]
    event = {"event": kind, "epoch": 2, "at": 1795159980.0, field: lines}
    entries = [["2026-11-20 07:33:00 UTC", lines]]
    assert blocks(told(events=[event]), title) == [{"entries": entries}]
    assert title not in titles(told())


def test_what_a_watcher_did_and_where_a_fork_comes_from_are_told():
    did = {"event": "watch", "epoch": 1, "at": 0.0, "what": "resubmitted", "why": "gone"}
    forked = {"event": "forked", "epoch": 1, "at": 0.0, "from": "file:///a", "stage": "pretrain"}
    data = told(events=[did | {"done": ["cancelled 1"]}, forked | {"at_step": 1200}])
    (block,) = blocks(data, "What the watcher did")
    assert block["entries"][0][1] == ["resubmitted: gone", "cancelled 1"]
    (places,) = blocks(data, "Where things are")
    assert ["forked from", "file:///a at pretrain step 1,200"] in places["facts"]


def test_rows_that_a_rewind_left_out_are_in_the_lineage_the_page_and_the_card():
    digest = DONE.stages["pretrain"].digest
    rows = SkippedRows(2800, 2832, step=88, epoch=1, digest=digest, why="loss <nan>", at=0.0)
    other = SkippedRows(8, 16, step=2, epoch=1, digest="d", why="loss <nan>", at=0.0)
    head = DONE.with_skipped("pretrain", other).with_skipped("pretrain", rows)
    text = "pretrain rows 2,800 to 2,831 (step 88: loss <nan>)"
    recorded = history_of(Job.model_validate(JOB), head=head)
    assert recorded.left_out() == [("1970-01-01 00:00:00 UTC", text)]
    data = told(head=head)
    assert blocks(data, "Rows left out") == [{"entries": [["1970-01-01 00:00:00 UTC", [text]]]}]
    assert data["summary"]["notes"] == [f"left out: {text}"]
    assert "Rows left out" not in titles(told())
    card = card_of_history(recorded)
    assert f"Left out, because steps on them went wrong: {text}." in card
    assert "unknown hardware" not in card
    assert "Left out" not in card_of()


def test_each_stage_has_how_long_it_took_where_the_run_has_recorded_that():
    (table,) = blocks(told(), "Stages")
    stages = {name: (state, numbers) for name, state, *numbers in table["rows"]}
    finished = "finished 1970-01-01 00:0"
    assert stages["pretrain"] == (f"{finished}1:00 UTC", ["480", "1 min 15 s", "0123456789ab"])
    assert stages["evaluate"] == (f"{finished}1:30 UTC", ["", "33 s", "ee"])
    assert stages["publish"] == (f"{finished}1:39 UTC", ["", "", "ff"])
    assert stages["sft"] == ("not finished", ["", "", ""])


def test_a_stage_says_how_often_its_data_were_read():
    job = Job.model_validate(JOB)
    job.section("pretrain").know_rows(120 * job.section("pretrain").global_batch)
    (table,) = blocks(page_data(dataclasses.replace(history(), known_job=job)), "Stages")
    assert table["rows"][1][2] == "480 (4 passes)"


def test_each_attempt_has_all_that_is_known_of_it_under_its_time():
    (attempt,) = blocks(told(), "Attempts")
    assert attempt["heading"] == "1970-01-01 00:00:00 UTC, pretraining"
    facts = dict(attempt["facts"])
    assert (facts["device"], facts["to step"], facts["seconds"]) == (
        "2-core CPU",
        "250",
        "1 min 15 s",
    )
