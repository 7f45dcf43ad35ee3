"""Every mistake in a job file is reported at once, with its line and what was expected."""

import json
import re

import pytest

from pipeline.job.file import load_job
from tests.pipeline.job.conftest import GOOD, complaint


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(job_file):
    text = GOOD.replace("pion-nano", "pion-nona").replace("steps: 20", "steps: fast")
    text = text.replace("path: corpus", "pth: corpus") + "  lrr: 3\npublsh: {}\n"
    message = complaint(job_file(text), "checkpoint.kep.last=3")
    places = re.findall(r"^ +(line \d+|command line) +([\w.]+):", message, re.MULTILINE)
    assert places == [
        ("line 2", "model.preset"),
        ("line 8", "data.sources.0.path"),
        ("line 9", "data.sources.0.pth"),
        ("line 11", "pretrain.steps"),
        ("line 13", "pretrain.lrr"),
        ("line 14", "publish.to"),
        ("line 14", "publsh"),
        ("command line", "checkpoint.kep"),
    ]
    assert "has 8 mistakes; nothing was started" in message


def test_the_mistakes_in_a_misspelled_section_are_reported_too(job_file):
    text = GOOD.replace("pretrain:", "pretrian:").replace("steps: 20", "stepz: 20\n  lr: fast")
    message = complaint(job_file(text.replace("tokenizer:", "tokenzer:")), "chekpoint.kep=3")
    for words in (
        "line 3        tokenzer: unknown key",
        "line 10       pretrian: unknown key",
        "line 11       pretrain.stepz: unknown key (value 20); did you mean `pretrain.steps`?",
        "line 12       pretrain.lr: 'fast' should be a number",
        "command line  checkpoint.kep: unknown key (value 3); did you mean `checkpoint.keep`?",
    ):
        assert words in message


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_conversations_have_no_field_to_read_a_text_from(job_file, kind):
    where = {"repo": "user/talks"} if kind == "hub" else {"path": "talks"}
    source = json.dumps({"kind": kind, **where, "field": "messages"})
    texts = load_job(job_file(), [f"data.sources=[{source}]"]).data.sources
    assert texts[0].field == "messages"
    assert "sft.sources.0.field: unknown key (value 'messages'); `field` belongs in `data." in (
        complaint(job_file(), f"sft={{steps: 200, sources: [{source}]}}")
    )
