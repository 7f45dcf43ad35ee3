"""What the phases of pretraining read, before the start, and what will disappoint in it."""

import re

import pytest

from pion.errors import BadInput
from pipeline.rehearsal.phases import phases_read, warnings_of
from pipeline.rehearsal.rehearse import rehearse
from pipeline.rent.check.data import check_rows
from pipeline.stages.prepare import prepare_part
from tests.pipeline.job.test_mixes import FIRST, LONG, with_phases
from tests.support.corpora import sentences
from tests.support.jobs import job_from, tiny_job
from tests.support.tiny_config import tiny_config

MIXED = {"mix": {"web": 1, "qa": "2x"}}
ROWS = [400, 300, 10]


def said(job, text=ROWS):
    return "; ".join(warnings_of(job, phases_read(job, text), text))


def test_each_phase_says_its_steps_its_rows_and_what_it_reads_of_each_source():
    job = tiny_job(**with_phases(FIRST, MIXED | LONG))
    first, second = phases_read(job, ROWS)
    assert str(first) == (
        "steps 1–10, rows of 32 tokens: web 90 % (1.15K tokens, 0.09x), code 10 % (128 tokens, "
        "0.013x)"
    )
    assert str(second) == (
        "steps 11–20, rows of 64 tokens: web 50 % (640 tokens, 0.05x), qa 50 % (640 tokens, 2x)"
    )


def test_before_the_rows_are_known_only_shares_next_to_passes_are_not():
    job = tiny_job(**with_phases(FIRST, MIXED))
    first, second = phases_read(job, [])
    assert [source.share for source in first.sources] == [90, 10]
    assert "web 1.0 (? tokens, ?), qa 2x (? tokens, ?)" in str(second)
    assert "are known after `pion run JOB --until prepare`" in said(job, [])


def test_too_many_passes_are_warned_of_with_what_would_do():
    job = tiny_job(**with_phases(FIRST, MIXED, pretrain__steps=200))
    few = [4000, 3000, 10]
    assert said(job, few) == ""
    job = tiny_job(**with_phases(FIRST, {"mix": {"web": 1, "qa": "6x"}}, pretrain__steps=200))
    assert "qa is read 6 times in all. Above 4, little is left to learn" in said(job, few)
    assert "read less of it in phase 2" in said(job, few)


def test_a_base_of_angles_that_is_too_low_for_the_rows_is_warned_of():
    def of(theta):
        long = {"seq_len": 8192, "rope_theta": theta}
        changes = with_phases(FIRST, long, pretrain__global_batch=256, data__shard_rows=1024)
        return said(tiny_job(**changes), [9000, 9000, 9000])

    assert of(100_000) == ""
    assert "1.rope_theta: 10,000 is low for 8,192 tokens; from 100,000 on, distant" in of(10_000)
    lowered = tiny_job(**with_phases(FIRST, {"rope_theta": 5000}))
    assert "5,000 is lower than 10,000, which the model has learned" in said(lowered)


def test_a_base_that_reads_one_source_replays_nothing():
    continued = job_from(tiny_config(seq_len=32), sft=None)
    assert "5 % of similar text (25 % for another language) keeps it" in said(continued, [])
    assert said(tiny_job(), []) == ""


def text_of(folder, **changes):
    """Return a job with three sources of text in a folder."""
    sources = []
    for number, (name, count) in enumerate((("web", 300), ("code", 200), ("qa", 20))):
        (folder / f"{name}.txt").write_text(
            "\n\n".join(sentences(1000 * number + n, 6) for n in range(count))
        )
        text = {"kind": "text", "path": str(folder / f"{name}.txt"), "split": "paragraph"}
        sources.append({"name": name} | text)
    usual = {"store": str(folder / "runs"), "data__sources": sources}
    return tiny_job(**with_phases(FIRST, MIXED | LONG, **usual | changes))


def test_a_mix_that_the_rows_can_not_give_is_refused_before_anything_is_trained(tmp_path):
    job = text_of(tmp_path)
    with pytest.raises(
        BadInput, match=r"pretrain\.phases\.1\.mix: 2x qa are .* Nothing was traine"
    ):
        prepare_part(job, "pretrain", tmp_path / "data", lambda message: None)
    refused = str(rehearse(job).failed["pretrain"])
    assert re.search(r"2x qa are .* At most .*x, or a longer phase", refused)


def test_check_counts_small_texts_and_shows_what_the_phases_read(tmp_path):
    rows = list(check_rows(text_of(tmp_path, pretrain__steps=2000)))
    assert [row.name for row in rows if row.ok] == ["documents", "phase 1", "phase 2"]
    assert any("qa 2x" in str(row) or "2x)" in str(row) for row in rows)
