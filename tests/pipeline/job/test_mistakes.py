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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "pretrian.steps=3",
            "pretrian: unknown key (value {'steps': 3}); did you mean `pretrain`?",
        ),
        ("pretrain.stepz=3", "unknown key (value 3); did you mean `pretrain.steps`?"),
        ("data.sources.0.pth=a", "data.sources.0.pth: unknown key (value 'a'); did you mean"),
        ("data.sources.0.revision=a", "`revision` belongs in"),
        ("lr=1e-3", "`lr` belongs in `prefer.lr` or `pretrain.lr` or `reinforce.lr` or `sft.lr`"),
        ("zzz=1", "unknown key (value 1); the keys of this section are name, seed, store"),
        ("steps=9", "`steps` belongs in `model.draft.steps` or `prefer.steps` or `pretrain.steps`"),
        ("tokenizer={}", "tokenizer: give exactly one of train, file, hub"),
        ("tokenizer={file: a.json, hub: user/name}", "tokenizer: give exactly one of train, file"),
        ("pretrain.init_from=runs/demo", "is gone: write `model: {from: …}` in place of"),
        ("evaluate.instructions=24", "is gone: name the task ifeval in evaluate.lm_eval.tasks"),
        ("evaluate.overlap=auto", "is gone: name the sets in data.clean.decontaminate, which"),
        ("evaluate.ladder=demo", "is gone: leave it out"),
        ("prefer.loss=kto", "the value 'kto' is gone: use apo-zero, which learns from single"),
        ("pretrain.steps=many", "pretrain.steps: 'many' should be a whole number"),
        ("pretrain.steps=1.5", "pretrain.steps: 1.5 should be a whole number"),
        ("pretrain.steps=true", "pretrain.steps: true should be a number"),
        ("pretrain.steps=0", "pretrain.steps: 0 should be greater than 0"),
        ("pretrain.lr=.nan", "pretrain.lr: nan should be"),
        ("pretrain.lr=.inf", "pretrain.lr: inf should be a finite number"),
        ("data.held_out=0.9", "data.held_out: 0.9 should be less than 0.5"),
        ("name=7", "name: 7 should be text"),
        ("evaluate.text=a.txt", "evaluate.text: only a model that the run starts from (model.from"),
        ("name=my run", "name: 'my run' has other characters than letters, digits and _.+=@-"),
        ("name=a/b", "Such as a-b"),
        ("data.sources.0.path=null", "data.sources.0.path: None should be text"),
        ("data.sources=corpus.txt", "data.sources: 'corpus.txt' should be a list"),
        ("data=corpus.txt", "data: 'corpus.txt' should be a section of `key: value` lines"),
        (
            "hardware.compile=maybe",
            "hardware.compile: unknown value 'maybe'; did you mean false? (expected auto, true, ",
        ),
        (
            "evaluate.lm_eval.chat=maybe",
            "evaluate.lm_eval.chat: unknown value 'maybe'; did you mean false? (expected auto, ",
        ),
        (
            "evaluate.lm_eval.chat=true",
            "evaluate.lm_eval.chat: true, but the model learns no chat format: the job has no sft",
        ),
        ("hardware.deterministic=maybe", "'maybe' should be true or false"),
        ("pretrain.schedule=wds", "unknown value 'wds'; did you mean wsd? (expected wsd, cosine"),
        ("model=pion-smal", "unknown model preset 'pion-smal'; did you mean 'pion-small'?"),
        ("model=pion-smal", "pion-nano, pion-micro, pion-small, pion-base, pion-large, pion-xl"),
        ("model.d_model=383", "model: d_model 383 is not a multiple of n_heads 6"),
        ("publish={to: out, require: [soon]}", "publish.require: 'soon' is not `result < number`"),
    ],
)
def test_a_mistake_names_its_path_its_value_and_what_is_expected(job_file, override, expected):
    assert expected in complaint(job_file(), override)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_conversations_have_no_field_to_read_a_text_from(job_file, kind):
    where = {"repo": "user/talks"} if kind == "hub" else {"path": "talks"}
    source = json.dumps({"kind": kind, **where, "field": "messages"})
    texts = load_job(job_file(), [f"data.sources=[{source}]"]).data.sources
    assert texts[0].field == "messages"
    assert "sft.sources.0.field: unknown key (value 'messages'); `field` belongs in `data." in (
        complaint(job_file(), f"sft={{steps: 200, sources: [{source}]}}")
    )


def test_an_unknown_kind_of_source_is_answered_with_the_kinds(job_file):
    message = complaint(job_file(GOOD.replace("kind: text", "kind: txet")))
    assert (
        "line 8  data.sources.0.kind: unknown kind 'txet'; did you mean text? (the kinds" in message
    )
    assert "python-docs, text, jsonl, parquet, npy, bin, hub, hub-npy" in message
    message = complaint(job_file(GOOD.replace("kind: text", "weight: 1")))
    assert "data.sources.0.kind: missing (the kinds are python-docs, text" in message


def test_a_missing_required_field_is_described(job_file):
    message = complaint(job_file(GOOD.replace("steps: 20", "lr: 3e-4")))
    assert "line 10  pretrain.steps: missing: optimizer steps" in message


def test_fields_that_contradict_each_other_are_all_reported(job_file):
    message = complaint(job_file(), "pretrain.warmup_steps=20", "pretrain.min_lr=1")
    assert "pretrain.warmup_steps: 20 must be below steps 20" in message
    assert "pretrain.min_lr: 1.0 is above lr 0.0003" in message
    message = complaint(job_file(), "data.seq_len=4096", "data.sources=[]")
    assert "data.seq_len: 4096 exceeds the model's context 2048" in message
    assert "data.sources: empty, but `pretrain` needs text" in message


def test_a_job_that_trains_nothing_is_refused(job_file):
    assert "nothing to train" in complaint(job_file(), "pretrain=null")
    message = complaint(
        job_file(), "pretrain=null", "sft={steps: 200, sources: [{kind: python-docs-qa}]}"
    )
    assert "model.from: without `pretrain` it must name a trained model" in message
