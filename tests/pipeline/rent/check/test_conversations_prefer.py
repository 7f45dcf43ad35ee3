"""Preferences are counted and shown before anything is rented, and what is wrong with them said."""

import json

import pytest
import yaml

from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.check.conversations import check_conversations
from pipeline.rent.plan.counted import count, expect_rows
from pipeline.rent.plan.estimate import estimate
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.corpora import save_tokenizer
from tests.support.jobs import tiny_dict
from tests.support.preference_runs import PREFER, write_pairs


def job_in(folder, **fields):
    """Return a job that learns from pairs after text, with a tokenizer that is there."""
    save_tokenizer(folder / "tokenizer.json")
    if not (folder / "pairs.jsonl").exists():
        write_pairs(folder)
    changes = {
        "pretrain": {"steps": 8, "warmup_steps": 1},
        "sft": None,
        "data": {"seq_len": 96, "sources": [{"kind": "text", "path": "*.txt"}]},
        "tokenizer": {"file": "tokenizer.json"},
        "model__vocab_size": 512,
        "store": str(folder / "runs"),
    }
    prefer = {key: value for key, value in PREFER.items() if key != "steps"}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**changes, prefer=prefer | fields)))
    return load_job(path)


def words_of(job):
    return {row.name: row.words for row in check_conversations(job)}


def test_check_shows_rows_lengths_steps_and_the_first_pair(tmp_path):
    words = words_of(job_in(tmp_path, lr=1e-6, min_lr=1e-7, global_batch=16))
    said = words["preferences"]
    assert "pairs in" in said
    assert "held out" in said
    assert "1 pass in" in said
    assert "the reference is computed once" in said
    assert "⟦" in words["the first"]
    assert {"prompt:", "chosen:", "rejected:"} <= set(words["the first"].split())
    assert set(words) == {"preferences", "the first", "steps"}  # so few pairs are few steps


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"global_batch": 2}, "batch", "32 to 512 are usual"),
        ({"global_batch": 16}, "steps", "change a model little. With prefer.global_batch="),
        (
            {"lr": 5e-5, "min_lr": 5e-6, "lora": {}, "epochs": 9},
            "passes",
            "9 passes over the same pairs",
        ),
    ],
)
def test_check_warns_of_what_will_disappoint(tmp_path, fields, name, expected):
    assert expected in words_of(job_in(tmp_path, **fields))[name]


def with_a_tokenizer_to_train(folder, **fields):
    job_in(folder, **fields)
    raw = yaml.safe_load((folder / "job.yaml").read_text())
    raw["tokenizer"] = {"train": {"vocab_size": 512}}
    (folder / "job.yaml").write_text(yaml.safe_dump(raw))
    return load_job(folder / "job.yaml")


def rewrite(folder, change):
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    changed = (json.dumps(change(number, line)) + "\n" for number, line in enumerate(lines))
    (folder / "pairs.jsonl").write_text("".join(changed))


def test_without_a_tokenizer_what_needs_none_is_counted(tmp_path):
    job = with_a_tokenizer_to_train(tmp_path)

    def change(number, line):
        if number < 3:
            return line | {"rejected": line["chosen"]}
        return line | ({"chosen": " "} if number == 3 else {})

    rewrite(tmp_path, change)
    words = words_of(job)
    said = words["preferences"].splitlines()
    assert said[0] == "prefer.sources.0: 116 pairs can be used, before lengths"
    assert "1, because an answer is empty" in said[1]
    assert "3, because chosen and rejected are the same tokens" in said[1]
    assert "known once the tokenizer is trained" in said[2]


def test_without_a_tokenizer_mistakes_are_found_too(tmp_path):
    job = with_a_tokenizer_to_train(tmp_path)
    rewrite(tmp_path, lambda number, line: line | {"score_chosen": 1, "score_rejected": 2})
    with pytest.raises(BadInput, match="chosen and rejected seem to be swapped"):
        check_conversations(job)
    same = {"chosen": "a", "rejected": "a"}
    rewrite(tmp_path, lambda number, line: {"prompt": line["prompt"], **same})
    with pytest.raises(BadInput, match="120 of 120 pairs are left out"):
        check_conversations(job)
    rewrite(tmp_path, lambda number, line: {"prompt": line["prompt"]})
    with pytest.raises(BadInput, match=r"pairs\.jsonl:1: not a pref"):
        check_conversations(job)


def test_too_few_prompts_to_hold_any_out_are_refused_in_the_words_of_the_stage(tmp_path):
    job = job_in(tmp_path, held_out=1e-6)
    with pytest.raises(BadInput) as refused:
        check_conversations(job)
    said = str(refused.value)
    assert "too few preferences: no prompt is held out" in said
    assert "raise prefer.held_out (now 1e-06)" in said
    assert "text" not in said


def test_a_warm_up_that_is_too_long_is_named_with_its_section(tmp_path):
    with pytest.raises(BadInput, match=r"^prefer\.warmup_steps: 500 must be below the") as refused:
        expect_rows(job_in(tmp_path, warmup_steps=500))
    assert "Lower prefer.warmup_steps" in str(refused.value)


def test_the_steps_of_a_job_of_preferences_alone_are_known_before_renting(tmp_path):
    job = job_in(tmp_path, epochs=2)
    assert expect_rows(job) is None
    counted = count(job, "prefer")
    assert job.section("prefer").total_steps == -(-2 * counted.rows // 4)


def test_the_reference_pass_is_planned_if_the_steps_are_given(tmp_path):
    job = job_in(tmp_path, steps=8)
    assert expect_rows(job) is None
    counted = count(job, "prefer")
    _, stage = estimate(job, offer("A40")).stages
    assert stage.reference_tokens == counted.rows * 320 // 3
    assert stage.reference_seconds == stage.reference_tokens / (stage.tokens_per_second or 0)
    assert stage.seconds == pytest.approx(
        8 * 4 * 320 / (stage.tokens_per_second or 0) + stage.reference_seconds
    )


def test_a_loss_without_a_reference_is_planned_without_reading_its_pairs(tmp_path):
    job = job_in(tmp_path, steps=8, loss="simpo")
    (tmp_path / "pairs.jsonl").unlink()
    assert expect_rows(job) is None
    _, stage = estimate(job, offer("A40")).stages
    assert (stage.reference_tokens, stage.reference_seconds) == (0, None)


def test_a_plan_says_if_it_can_not_count_the_pass(tmp_path):
    job = job_in(tmp_path, steps=8)
    (tmp_path / "pairs.jsonl").unlink()
    said = expect_rows(job)
    assert said.startswith("the reference pass of prefer is left out: prefer.sources.0")


def test_too_few_pairs_for_a_batch_are_refused_before_renting(tmp_path):
    with pytest.raises(BadInput, match=r"fewer than one batch.*prefer\.global_batch needs 1,000"):
        check_conversations(job_in(tmp_path, global_batch=1000))
