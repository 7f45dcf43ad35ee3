"""report.html is one file: the page with its data inside, which asks nobody for anything."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page_data import page_data
from pipeline.report.report_file import report_html, write_report
from pipeline.state.claim import claim_run
from pipeline.state.head import Head, StageRecord
from pipeline.state.owner import Owner
from pipeline.state.record_json import Damaged
from tests.paths import JOBS
from tests.pipeline.report.test_page_data import DONE, history, sample_row, told
from tests.support.finished_run import make_run

ATTACK = (
    '</p></script><!--<script>alert(1)</script><img src="https://evil"> & &amp; $body '
    "<!-- numbers --> \u2028\u2029 \ud800"
)


class File(HTMLParser):
    """Collects every tag with its attributes, the data, the text for no scripts, and open tags."""

    VOID = ("meta", "link", "input")

    def __init__(self, **fields):
        super().__init__()
        self.html = report_html(history(**fields)).decode()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.without_scripts = ""
        self.title = ""
        self.frozen: dict[str, Any] = {}
        self.open: list[str] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.tags and self.tags[-1][1].get("id") == "frozen" and self.open[-1] == "script":
            self.frozen = json.loads(data)
        if self.open[-1:] == ["title"]:
            self.title += data
        if "noscript" in self.open:
            self.without_scripts += data


def test_it_loads_nothing_from_anywhere_and_its_policy_allows_its_own_scripts_alone():
    file = File()
    for tag, attributes in file.tags:
        assert tag not in ("iframe", "img", "object", "base")
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", file.html)
    (policy,) = (
        str(attributes["content"])
        for _, attributes in file.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:; base-uri 'none'")
    assert "'self'" not in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == sum(tag in ("style", "script") for tag, _ in file.tags) - 1
    assert file.open == []


def test_it_has_the_same_data_as_the_live_page_and_all_points():
    file = File()
    (run,) = file.frozen.pop("runs")
    curves = run.pop("curves")
    assert file.frozen == {"frozen_at": 0.0, "settings": None}
    assert run == told()
    # Nobody can be asked for the points of a curve, so all are inside.
    assert {stage: [*curves[stage]] for stage in curves} == run["metrics"]
    assert curves["pretrain"]["held_out_loss"] == [
        [48, 3.3, 14.4],
        [240, 3.3, 72.0],
        [480, 3.3, 144.0],
    ]
    assert file.title == "demo · Pion"
    begun = File(head=Head(), metrics={})
    assert (begun.title, begun.open) == ("demo · Pion", [])


def test_without_scripts_it_says_the_numbers_and_what_to_do():
    deadline = {"at": 60.0, "watcher": None, "at_risk_from": None}
    text = File(deadline=deadline).without_scripts
    for shown in (
        "pion status RUN",
        "file:///runs/demo",
        "Fine-tuning step",
        "120",
        "Parameters",
        "5.12M",
        "Bits per byte",
        "2.143",
        "Deadline 1970-01-01 00:01:00 UTC",
        "not done yet",
    ):
        assert shown in text, shown


def test_text_of_models_and_users_cannot_become_markup():
    sample = sample_row(1, ATTACK, prompt=ATTACK)
    head = dataclasses.replace(DONE, owner=None)
    plain = [tag for tag, _ in File().tags]
    file = File(samples=[sample], stage="sft", head=head, url=f"file:///runs/{ATTACK}")
    assert [tag for tag, _ in file.tags] == plain
    assert file.frozen["runs"][0]["samples"][0]["prompt"] == ATTACK
    assert ATTACK.replace("\ud800", "\\ud800") in file.without_scripts
    for character in "\u2028\u2029":
        assert character not in file.html.partition("frozen")[2]
    assert "<script>alert" not in file.html
    assert "<img" not in file.html


def test_a_damaged_result_refuses_the_report_and_is_a_note_on_the_live_page(tmp_path):
    record = StageRecord("ee", 90.0, result={"sft": {"loss": "x"}})
    head = dataclasses.replace(DONE, stages=DONE.stages | {"evaluate": record})
    with pytest.raises(Damaged, match=r"stages\.evaluate\.result"):
        write_report(tmp_path / "report.html", history(head=head))
    assert list(tmp_path.iterdir()) == []
    assert "stages.evaluate.result" in page_data(history(head=head))["summary"]["notes"][0]


def test_a_report_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, history())
    write_report(path, history(samples=[sample_row(48, "nothing else")]))
    assert "nothing else" in path.read_text(encoding="utf-8")
    assert [path.name for path in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_can_t_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, history())
    assert [each.read_text() for each in tmp_path.iterdir()] == ["earlier"]


def test_the_report_can_be_written_again(here, pion):
    run = make_run(here / "runs", release=False)
    assert "no record of its job" in pion("report", "demo")[2]
    text = (JOBS / "demo.yaml").read_text()
    run.write_job("0123", text)
    claim_run(run, Owner.me()).set_job("0123")
    code, out, _ = pion("report", "demo", "--json")
    assert code == 0
    assert "demo" in Path(json.loads(out)["report"]).read_text()
