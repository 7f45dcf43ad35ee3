"""The card and the page say what was measured, what training changed, and what was forgotten.

`result_blocks.md` has each sentence and table of each case. To write it again:

    python -m tests.pipeline.report.test_result_tables
"""

import copy
import itertools
import json
import math
from pathlib import Path

import pytest

from pion.config.draft import Draft
from pipeline.job import Job
from pipeline.report.blocks import share_with_interval
from pipeline.report.model_card import source_lines, table
from pipeline.report.result_tables import (
    calibration_in_brief,
    part_in_brief,
    result_blocks,
    start_in_words,
)
from pipeline.report.results import Evaluated
from tests.hostile.of_types import example
from tests.pipeline.report.test_model_card import JOB, RESULTS, card_and_page

WRITTEN = Path(__file__).with_name("result_blocks.md")
ASKED = {
    "form": "chat",
    "shots": 5,
    "version": "3.0",
    "lm_eval": "0.4.13",
    "fewshot_seed": 1234,
    "questions": 500,
    "of": 1319,
    "cropped": 0.0,
    "until": ["Question:", "\n\n", "`\x1b[31m"],
    "max_gen_toks": 1024,
    "cut_off": 0.124,
}
SCORED = {name: ASKED[name] for name in ("version", "lm_eval")} | {"questions": 40, "of": 40}
LM_EVAL = {
    "gsm8k": {"exact_match,strict": 0.02, "exact_match_stderr,strict": 0.004, "asked": ASKED},
    "ifeval": {"skipped": "no network"},
    "old": {"acc,none": 0.5},
    "one turn": {"acc": 0.1, "asked": {**SCORED, "form": "chat", "shots": 1}},
    "no turn": {"acc": 0.2, "asked": {**SCORED, "form": "chat", "shots": 0}},
    "not known": {"acc": 0.3, "asked": {**SCORED, "form": "chat", "shots": None}},
    "shots": {"acc": 0.4, "asked": {**SCORED, "form": "text", "shots": 5}},
    "no shots": {"acc": 0.6, "asked": {**SCORED, "form": "text", "shots": 0}},
}


def numbered(value, numbers):
    """Return a record in which no two numbers are equal."""
    if isinstance(value, dict):
        return {name: numbered(value[name], numbers) for name in sorted(value)}
    if isinstance(value, list):
        return [numbered(item, numbers) for item in value]
    if isinstance(value, bool | str):
        return value
    return 11 * next(numbers) if isinstance(value, int) else next(numbers) / 1000


def changed(results, changes):
    """Return results with other values at these dotted places; those of LEFT_OUT are not there."""
    results = copy.deepcopy(results)
    for place, value in changes.items():
        *outer, name = place.split(".")
        record = results
        for key in outer:
            record = record[int(key) if isinstance(record, list) else key]
        record[name] = value
        if value is LEFT_OUT:
            del record[name]
    return results


def not_finite(value):
    """Return a record in which all numbers are null that may be."""
    if isinstance(value, dict):
        finite = ("baseline", "baseline_v2", "cropped", "cut_off", "desired")
        return {name: one if name in finite else not_finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [not_finite(item) for item in value]
    return None if isinstance(value, float) else value


LEFT_OUT = object()
LESS = {
    "change.response_loss": -0.2,
    "prefer.response_change": -0.02,
    "sft.long_context.worth": -0.1,
}
LESS |= {"prefer.preferences.change.raw.accuracy": -0.3, "prefer.preferences.moved.rejected": -0.4}
EVERY = changed(numbered(example(Evaluated, 1), itertools.count(101)), LESS) | {"lm_eval": LM_EVAL}
SHOWN = [{"prompt": "What is\n x?", "before": "It | is.", "after": "A name."}]
EVERY["prefer"]["preferences"]["answers"]["shown"] = EVERY["reinforce"]["rewards"]["shown"] = SHOWN
TUNED = {"prefer": {"preferences": EVERY["prefer"]["preferences"]}}
REWARDED = {"reinforce": {"rewards": EVERY["reinforce"]["rewards"]}}
PAIRS, TASK = "prefer.preferences", "sft.core.tasks.0"
CALM = {"sft": {"loss": 3.0, "text": {"bits_per_byte": 1.05}}, "compared_text": {"sha256": "ab"}}
CALM |= {"base": {"text": {"bits_per_byte": 1.0}}}


def forgot(more, error):
    return CALM | {"change": {"text": {"bits_per_byte": more, "bits_per_byte_sem": error}}}


def rewards(right, right_of_any):
    errors = {"pass_sem": 0.1, "pass_any_sem": 0.1}
    change = {"pass": right, "pass_any": right_of_any, **errors}
    return {"reinforce.rewards.change": EVERY["reinforce"]["rewards"]["change"] | change}


CASES = {
    "every measure": EVERY,
    "nothing is finite": not_finite(EVERY),
    "single answers": changed(
        TUNED,
        {f"{PAIRS}.{name}": {} for name in ("before", "change")}
        | {f"{PAIRS}.{name}": LEFT_OUT for name in ("rules", "answers", "reference")}
        | {f"{PAIRS}.kind": "labels", "prefer.text_change": 0.1},
    ),
    "all chosen answers are longer": changed(
        TUNED, {f"{PAIRS}.rules.shorter": 0, f"{PAIRS}.of_means": False}
    ),
    "all chosen answers are shorter": changed(
        TUNED, {f"{PAIRS}.rules.longer": 0, f"{PAIRS}.with_reference": False}
    ),
    "by sums": changed(TUNED, {f"{PAIRS}.of_means": False, f"{PAIRS}.moved.chosen": None}),
    **{
        f"rewards changed by {right} and {right_of_any}": changed(
            REWARDED, rewards(right, right_of_any)
        )
        for right, right_of_any in (
            *((0.3, 0.1), (0.3, -0.3), (0.3, 0.3)),
            *((0.1, 0.1), (None, 0.1), (0.3, None)),
        )
    },
    "few tokens of 70 %": changed(
        {"sft": {"calibration": EVERY["sft"]["calibration"]}},
        {"sft.calibration.near_70.tokens": 99},
    ),
    "no tokens of 70 %, of the base": changed(
        {"base": {"text": EVERY["base"]["text"]}}, {"base.text.calibration.near_70": None}
    ),
    "the last checkpoint": changed(
        {"checkpoint": EVERY["checkpoint"]},
        {"checkpoint.last_step": EVERY["checkpoint"]["step"]},
    ),
    "a task at chance": changed(
        {"sft": {"core": EVERY["sft"]["core"]}},
        {f"{TASK}.accuracy": 0.26, f"{TASK}.baseline": 0.25, f"{TASK}.sem": 0.01}
        | {f"{TASK}.not_finite": 0, f"{TASK}.label": "piqa", "sft.core.not_core": []}
        | {"sft.core.value": 0.01, "sft.core.sem": 0.006, "sft.core.limit": None},
    ),
    "a task that is told from chance": changed(
        {"sft": {"core": EVERY["sft"]["core"]}},
        {f"{TASK}.accuracy": 0.9, f"{TASK}.baseline": 0.25, f"{TASK}.sem": 0.01}
        | {f"{TASK}.not_finite": 0, f"{TASK}.ties": 0, f"{TASK}.commonest": None}
        | {"sft.core.value": 0.1, "sft.core.sem": 0.006, "sft.core.dtype": "float32"},
    ),
    "results of 0.1.0": {
        "pretrain": {"loss": 3.0, "loss_sem": 0.1, "perplexity": 20.1, "bits_per_byte": 2.0},
        "sft": {"response_loss": 1.6, "stop_accuracy": 0.9, "stop_accuracy_sem": 0.01},
        "ngram": {"order": 4, "loss": 3.05},
        "prefer": {"loss": 3.0},
        "lm_eval": {"piqa": {"acc,none": 0.5}},
    },
    "no results": {},
    "a run with baselines": RESULTS,
    "odd numbers": {
        "pretrain": {"loss": 0.0004, "loss_sem": 0.00012, "perplexity": 1.0, "bits_per_byte": 1e-9},
        "sft": {"loss": math.nan, "loss_sem": 0.1, "perplexity": math.inf, "bits_per_byte": 2.0},
    },
    **{
        f"forgot {more} ± {error}": forgot(more, error)
        for more, error in (
            *((0.05, 0.01), (-0.05, 0.01), (0.05, 0.03), (0.0, 0.0)),
            *((0.05, None), (-0.05, None), (None, None)),
        )
    },
}


def written(results):
    """Return what the page and the card say of results, as the card has it."""
    job = Job.model_validate(copy.deepcopy(JOB))
    blocks = result_blocks(job, results, code="`{}`")
    brief = result_blocks(job, results, code="`{}`", brief=True)
    assert [block for block in blocks if block in brief] == brief
    return "\n\n".join(
        ("[page] " if block not in brief else "")
        + (block if isinstance(block, str) else table(*block))
        for block in blocks
    )


def sections(text):
    """Return the sections of a text, by their titles."""
    parts = (part.partition("\n") for part in text.split("\n# ")[1:])
    return {title: body.strip("\n") for title, _, body in parts}


@pytest.mark.parametrize("name", CASES)
def test_each_sentence_and_table_is_written(name):
    assert written(CASES[name]) == sections("\n" + WRITTEN.read_text(encoding="utf-8"))[name]


def test_card_and_page_have_all_of_it():
    results = changed(EVERY, {"lm_eval": {}})
    card, page = card_and_page(results)
    job = Job.model_validate(copy.deepcopy(JOB))
    for block in result_blocks(job, results, code="`{}`", brief=True):
        assert (block if isinstance(block, str) else table(*block)) in card
    for block in result_blocks(job, results):
        for text in [block] if isinstance(block, str) else itertools.chain(*block.rows):
            assert json.dumps(text, ensure_ascii=False) in page
    for plain in card_and_page({"sft": {"response_loss": 1.0}}):
        assert "efore and after training" not in plain


def test_the_text_is_named_without_its_folder():
    job = Job.model_validate(copy.deepcopy(JOB))
    job.evaluate = job.evaluate.model_copy(update={"text": "/home/me/notes.txt"})
    assert "The other text is <notes.txt> (sha256 <ab>)" in str(
        result_blocks(job, forgot(0.1, 0.1), code="<{}>")
    )


def test_lines_of_a_summary():
    assert start_in_words(
        {"response_loss": 3.2, "response_loss_sem": 0.05, "text": {"bits_per_byte": 1.0}}
    ) == (
        "loss of responses in held-out conversations (nats per token): 3.200 ± 0.050; other text "
        "(bits per byte): 1.000"
    )
    calibration = {"confidence": 0.312, "accuracy": None, "ece": 0.023, "ece_sem": 0.002}
    assert calibration_in_brief(calibration) == "31.2 % sure, – right (ECE 2.3 %)"
    greedy = {"tokens_per_pass": 1.71, "tokens_per_pass_sem": 0.042, "right": 0.631}
    drafts = {"greedy": greedy, "drawn": {"tokens_per_pass": 1.38, "right": None}}
    told = [part_in_brief(Draft.result, found) for found in (drafts, {"greedy": greedy})]
    assert told == [f"{n} tokens a pass (1 without drafts)" for n in ("1.38", "1.71 ± 0.04")]


def test_a_share_of_all_cases_has_an_interval_and_an_old_result_has_no_error():
    of_all = {"stop_accuracy": 1.0, "stop_accuracy_sem": 0.0}
    counted = share_with_interval({**of_all, "ends": 40}, "stop_accuracy", "ends")
    assert counted == "100.0 % (95 %: 91.2 to 100.0)"
    assert share_with_interval(of_all, "stop_accuracy", "ends") == "100.0 %"


def test_the_card_says_the_mix_of_each_phase():
    job = copy.deepcopy(JOB)
    job["data"]["documents"] = True
    for name, source in zip(("docs", "web", "notes"), job["data"]["sources"]):
        source.pop("weight", None)
        source["name"] = name
    job["pretrain"]["phases"] = [
        {"until": 240, "mix": {"docs": 1}},
        {"until": 360, "mix": {"docs": 1, "web": 2, "notes": "4x"}},
        {"seq_len": 512, "rope_theta": 50_000},
    ]
    lines = source_lines(Job.model_validate(job))
    assert [*lines[:3], *lines[-3:]] == [
        "Docstrings, comments and `pydoc` topics of Python's standard library "
        "(pretraining, called docs)",
        "[roneneldan/TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) "
        "(pretraining, called web)",
        "`notes.txt` (text files) (pretraining, called notes)",
        "pretraining from step 1 on: docs",
        "pretraining from step 241 on: notes 4 times, the rest 33.3 % docs, 66.7 % web",
        "pretraining from step 361 on: rows of 512 tokens, θ 50,000",
    ]


if __name__ == "__main__":
    texts = (f"# {name}\n\n{written(results)}\n" for name, results in CASES.items())
    WRITTEN.write_text("\n".join(texts), encoding="utf-8")
