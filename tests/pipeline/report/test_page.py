"""The report is one HTML file that needs nothing else and shows what the run measured."""

import base64
import dataclasses
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.cost.costs import Costs, costs
from pipeline.job import Job
from pipeline.report.history import RunHistory
from pipeline.report.page import write_report
from pipeline.report.plots import loss_plot, running_mean, throughput_plot
from pipeline.report.result_tables import share_with_interval
from pipeline.state.author import Author
from pipeline.state.deadline import RunDeadline
from pipeline.state.records import CheckpointEntry, Head, SkippedRows, Spent, StageRecord
from tests.pipeline.report.test_model_card import (
    JOB,
    RESULTS,
    card_of,
    card_of_history,
    history_of,
)

PNG = b"\x89PNG\r\n\x1a\n"


def row(step: int, **measured: Any) -> dict[str, Any]:
    """Return a row of metrics. Another machine took over after step 250."""
    return {"step": step, "epoch": 1 + (step > 250), "at": 0.3 * step, **measured}


METRICS: dict[str, list[dict[str, Any]]] = {
    "pretrain": [row(s, loss=8 / s + 3, tokens_per_second=5000.0) for s in range(10, 481, 10)]
    + [row(s, held_out_loss=3.3) for s in (48, 240, 480)],
    "sft": [row(s, loss=2 + 1 / s, tokens_per_second=4800.0) for s in range(10, 121, 10)],
}
PROMPT = "Return a"


def sample_row(step: int, text: str, prompt: str = PROMPT) -> dict[str, Any]:
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


def report_of(
    tmp_path: Path,
    *,
    samples: Sequence[dict[str, Any]] = SAMPLES,
    stage: str = "pretrain",
    events: Sequence[dict[str, Any]] = (),
    **fields: Any,
) -> str:
    """Return a run's page, with these samples of `stage` and these events after the usual ones."""
    metrics = METRICS | {stage: [*METRICS[stage], *samples]}
    metrics = {name: sorted(rows, key=lambda row: row["step"]) for name, rows in metrics.items()}
    history = RunHistory(
        job=Job.model_validate(JOB),
        url="file:///runs/demo",
        head=DONE,
        events=[*EVENTS, *events],
        metrics=metrics,
        costs=Costs((), {}),
    )
    return write_report(
        tmp_path / "new" / "report.html", dataclasses.replace(history, **fields)
    ).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects every tag with its attributes, the visible text, and unclosed tags."""

    VOID = ("meta", "img", "source", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_it_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    html = report_of(tmp_path)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", html)
    assert page.open == []


def test_it_holds_both_plots_for_light_and_dark(tmp_path: Path) -> None:
    tags = Page(report_of(tmp_path)).tags
    sources = [a.get("src") or a.get("srcset") for tag, a in tags if tag in ("img", "source")]
    assert len(set(sources)) == 4
    for source in sources:
        assert base64.b64decode(str(source).split(",")[1]).startswith(PNG)


def test_it_shows_results_samples_stages_machines_and_paths(tmp_path: Path) -> None:
    text = Page(report_of(tmp_path)).text
    for shown in (
        "5.12M",
        "2.143 ± 0.014",
        "4-gram",
        "93.0 % ± 1.2",
        "its data can't be had: no network",
        "sample of step 480.",
        "0123456789ab",
        "2-core CPU",
        "1 min 15 s",
        "from the start to the first step",
        "published/demo",
    ):
        assert shown in text, shown


@pytest.mark.parametrize(
    ("at", "expected"),
    [(99.0 + 7560, "met, 2 h 06 min early"), (39.0, "missed by 1 min 00 s"), (None, None)],
)
def test_it_says_whether_the_deadline_was_met(
    tmp_path: Path, at: float | None, expected: str | None
) -> None:
    deadline = RunDeadline(at, 60.0, 0.0, Author("host", 7, "ann"), "pion launch")
    done = {stage: StageRecord("d", 9.0) for stage in Job.model_validate(JOB).stages}
    head = dataclasses.replace(DONE, stages=done | DONE.stages)
    text = Page(report_of(tmp_path, head=head, deadline=deadline)).text
    if expected is None:
        assert "deadline" not in text
    else:
        assert expected in text
        assert "not done yet" in Page(report_of(tmp_path, deadline=deadline)).text


def test_samples_are_spread_evenly_from_the_first_to_the_last(tmp_path: Path) -> None:
    steps = re.findall(r"sample of step (\d+)", Page(report_of(tmp_path)).text)
    assert steps == ["48", "144", "240", "288", "384", "480"]


def test_text_from_the_model_cannot_become_markup(tmp_path: Path) -> None:
    attack = '</p><script>alert(1)</script><img src="https://evil">$body ${title} \x1b[31m'
    sample = sample_row(1, attack, prompt=attack)
    page = Page(report_of(tmp_path, samples=[sample], stage="sft"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count("<script>alert(1)</script>") == 2
    assert "$body ${title}" in page.text
    assert "\x1b" not in page.text


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, head=Head(), metrics={}))
    assert "demo" in page.text
    assert "Samples" not in page.text
    assert page.open == []


def test_a_report_replaces_the_earlier_one(tmp_path: Path) -> None:
    report_of(tmp_path)
    assert "nothing else" in report_of(tmp_path, samples=[sample_row(48, "nothing else")])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "epoch": 1, "loss": 3.0}],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}],
        [{"step": 1, "held_out_loss": 3.0}, {"step": 1, "sample": {"prompt": "", "text": ""}}],
    ],
)
def test_plots_take_whatever_was_measured(rows: list[dict[str, Any]]) -> None:
    for plot in (loss_plot, throughput_plot):
        assert plot({"pretrain": rows}).startswith(PNG)


def test_the_same_metrics_give_the_same_picture() -> None:
    assert loss_plot(METRICS) == loss_plot(METRICS)


def test_the_smoothed_curve_does_not_lag_behind_a_falling_one() -> None:
    falling = [float(value) for value in range(100, 0, -1)]
    smooth = running_mean(falling, 9)
    assert smooth[4:-4] == pytest.approx(falling[4:-4])
    assert len(smooth) == len(falling)
    assert running_mean(falling, 1) == falling


def test_receipts_of_hops_are_shown_line_by_line_and_escaped(tmp_path):
    lines = ["hop: 1 × A40 on <b>a</b> → 2 × A4000 on b", "first row 64 = last + 1"]
    hop = {"event": "hop", "epoch": 2, "at": 1795159980.0, "receipt": lines}
    html = report_of(tmp_path, events=[hop])
    assert "<h2>Hops</h2>" in html
    assert "2026-11-20 07:33:00 UTC<br>hop: 1 × A40 on &lt;b&gt;a&lt;/b&gt;" in html
    assert "<br>first row 64 = last + 1" in html
    assert "<h2>Hops</h2>" not in report_of(tmp_path)


def costs_of_two_machines(price: float | None) -> Costs:
    events = [
        {
            "event": "machine",
            "epoch": epoch,
            "at": at + 30.0,
            "session": f"s{epoch}",
            "id": f"pod{epoch}",
            "host": "pod",
            "cloud": "RunPod",
            "region": "<b>CA</b>",
            "gpu": gpu,
            "count": 1,
            "spot": True,
            "rented_at": at,
            "price": price,
        }
        for epoch, at, gpu in ((1, 1000.0, "A40"), (2, 2000.0, "RTXA4000"))
    ]
    head = Head(epoch=2, spent=Spent(until=2060.0))
    return costs(events, {}, head, 9999.0)


def test_cost_is_shown_by_cause_and_by_machine(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, costs=costs_of_two_machines(36.0)))
    for shown in ("Cost", "$0.90", "boot, until the first step", "100.0 %", "$36.00"):
        assert shown in page.text, shown
    assert "A40 on RunPod/<b>CA</b>, spot" in page.text
    assert "RTXA4000 on RunPod" in page.text
    assert "useful time" in page.text
    assert page.open == []


def test_without_prices_there_are_hours_and_no_dollars(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, costs=costs_of_two_machines(None)))
    assert "1 min 30 s" in page.text
    assert "$" not in page.text
    assert "dollars" not in page.text


def test_a_run_that_went_on_with_other_code_says_with_what(tmp_path: Path) -> None:
    changes = ["commit aaa → bbb", "torch <1> → 2"]
    change = {"event": "changed", "epoch": 2, "at": 1795159980.0, "changes": changes}
    html = report_of(tmp_path, events=[change])
    assert "2026-11-20 07:33:00 UTC<br>commit aaa → bbb<br>torch &lt;1&gt; → 2" in html
    assert "Changes of code" not in report_of(tmp_path)


def test_rows_that_a_rewind_left_out_are_in_the_lineage_the_report_and_the_card(
    tmp_path: Path,
) -> None:
    rows = SkippedRows(2800, 2832, step=88, epoch=1, digest="d", why="loss <nan>", at=0.0)
    head = DONE.with_skipped("pretrain", rows)
    text = "pretrain rows 2,800 to 2,831 (step 88: loss <nan>)"
    history = history_of(Job.model_validate(JOB), head=head)
    assert history.left_out() == [("1970-01-01 00:00:00 UTC", text)]
    page = Page(report_of(tmp_path, head=head))
    assert f"Rows left out1970-01-01 00:00:00 UTC{text}" in page.text.replace("\n", "")
    assert page.text.count("left out") == 1  # the table of attempts has no column for it
    assert "Rows left out" not in report_of(tmp_path)
    card = card_of_history(history)
    assert f"Left out, because steps on them went wrong: {text}." in card
    assert "unknown hardware" not in card
    assert "Left out" not in card_of()


def test_each_stage_shows_how_long_it_took_where_the_run_has_recorded_that(tmp_path: Path) -> None:
    rows = re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td>(.*?)</tr>", report_of(tmp_path))
    stages = {name: (status, re.findall(r">([^<]*)</td>", rest)) for name, status, rest in rows}
    finished = "finished 1970-01-01 00:0"
    assert stages["pretrain"] == (
        f"{finished}1:00 UTC",
        ["480", "1 min 15 s", "0123456789ab"],
    )
    assert stages["evaluate"] == (f"{finished}1:30 UTC", ["", "33 s", "ee"])
    assert stages["publish"] == (f"{finished}1:39 UTC", ["", "", "ff"])
    assert stages["sft"] == ("not finished", ["", "", ""])


def test_a_share_of_all_cases_has_an_interval_and_an_old_result_keeps_its_error() -> None:
    of_all = {"stop_accuracy": 1.0, "stop_accuracy_sem": 0.0}
    counted = share_with_interval({**of_all, "ends": 40}, "stop_accuracy", "ends")
    assert counted == "100.0 % (95 %: 91.2 to 100.0)"
    assert share_with_interval(of_all, "stop_accuracy", "ends") == "100.0 % ± 0.0"
