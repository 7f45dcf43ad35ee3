"""A run whose last stage learns from rewards keeps every promise that other runs keep."""

import json
import re

import pytest

from tests.runs.test_hops import on_a_new_machine
from tests.support.preference_runs import WORDS
from tests.support.whole_runs import (
    ends_with,
    final_weights,
    finish,
    head_of,
    kill_after_a_save,
    metrics_of,
    rows_trained,
    start,
    write_job,
)

STEPS = 6
EACH_STEP = {"checkpoint__every_steps": 1, "log__every": 1}
FUNCTION = """
def letters(text, answer, finished, tokens):
    return len(set(text)) / 50 + (answer in text)
"""
SIZES = {"steps": STEPS, "global_batch": 4, "answers": 4, "max_tokens": 32, "held_out": 0.2}
REINFORCE = SIZES | {"lr": 1e-3, "min_lr": 1e-4, "pass_at": 0.1}
REINFORCE |= {"sources": [{"kind": "jsonl", "path": "questions.jsonl"}]}
OWN = {"kind": "python", "path": "rewards.py", "function": "letters"}
REINFORCE |= {"rewards": [OWN | {"weight": 3}, {"kind": "regex", "pattern": ".*e.*"}]}


def reinforce_job(folder, function=FUNCTION, **changes):
    """Write a tiny job of three training stages, few steps each, and its data into `folder`."""
    lines = ({"question": f"What did {n} see?", "answer": WORDS[n % 11]} for n in range(60))
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewards.py").write_text(function)
    # A model that can end an answer.
    short = {"pretrain__steps": 6, "sft__steps": 40, "sft__lr": 1e-2, "hardware__dtype": "float32"}
    reinforce = {f"reinforce__{name}": value for name, value in REINFORCE.items()}
    return write_job(folder, **{**short, **reinforce, **changes})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(reinforce_job(folder, publish={"to": "model", "require": ["reinforce.reward > 0"]}))
    return folder


def test_a_job_learns_from_rewards_after_fine_tuning_and_publishes_the_result(unbroken):
    assert list(head_of(unbroken).data) == ["pretrain", "sft", "reinforce"]
    weights = final_weights(unbroken)
    assert len(set(weights.values())) == len(weights) == 3
    assert rows_trained(unbroken, "reinforce") == [[4 * s, 4 * s + 4] for s in range(STEPS)]
    card = (unbroken / "model/README.md").read_text()
    assert "`questions.jsonl` (jsonl files) (prompts for rewards)" in card
    assert "Rewards: `letters` × 3, `regex`. 4 answers to each prompt" in card


def test_the_evaluation_says_what_changed_to_the_same_prompts(unbroken):
    tuned = head_of(unbroken).stages["evaluate"].result["reinforce"]
    found = tuned["rewards"]
    assert (found["start"], found["answers"]) == ("sft", 4)
    assert tuned["reward"] == found["after"]["reward"]
    change = found["after"]["reward"] - found["before"]["reward"]
    assert found["change"]["reward"] == pytest.approx(change)
    assert tuned["text_change"] is not None
    assert found["change"]["nats"] != 0
    page = (unbroken / "runs/tiny/report.html").read_text()
    assert "sampled before and after training from the same random numbers" in page
    assert "estimates the KL divergence to the start" in page


def test_each_step_and_evaluation_has_the_numbers_of_rewards(unbroken):
    rows = metrics_of(unbroken, "reinforce")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [*range(1, STEPS + 1)]
    names = {"reward_letters", "reward_regex", "pass", "entropy", "signal", "pass_any"}
    for row in steps:
        assert row.keys() >= names
        assert row["mismatch"] < 1e-5
    before, *_ = (row for row in rows if "held_out_reward" in row)
    assert before["step"] == 0
    assert head_of(unbroken).stages["reinforce"].result.keys() >= {"held_out_reward"}


def test_the_best_and_the_worst_answer_are_kept_at_six_steps(unbroken):
    rows = [row for row in metrics_of(unbroken, "reinforce") if "sample" in row]
    kept = [row for row in rows if row["sample"]["prompt"].startswith("What did ")]
    assert len({row["step"] for row in kept}) == 6
    for row in kept:
        best, worst = re.findall(r"(?m)^reward ([\d.]+): ", row["sample"]["text"])
        assert float(best) > float(worst)


@pytest.mark.soak
def test_a_kill_and_a_hop_to_an_empty_machine_change_no_bit(tmp_path, unbroken, monkeypatch):
    job = reinforce_job(tmp_path, **EACH_STEP)
    kill_after_a_save(job, "reinforce")
    on_a_new_machine(monkeypatch, tmp_path)
    (tmp_path / "questions.jsonl").unlink()  # the prepared prompts come from the store
    assert "reinforce: starts (continues after step" in finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert rows_trained(tmp_path, "reinforce") == rows_trained(unbroken, "reinforce")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "line", "code", "words"),
    [
        ("text", "return 0", 2, "To 0% of the prompts the rewards differ"),
        ("text", "return hash(text) % 7", 2, "the same answer another reward in another process"),
        ("text", "raise ValueError('no')", 2, "can't be judged: ValueError: no (line 2)"),
        ("colour", "return 1", 2, "colour"),
    ],
)
def test_rewards_that_teach_nothing_or_are_broken_end_the_stage_in_words(
    tmp_path, parameter, line, code, words
):
    function = f"def letters({parameter}):\n    {line}"
    job = reinforce_job(tmp_path, function, reinforce__rewards=[OWN])
    said = ends_with(code, start(job))
    assert words in said
    assert ("pretrain: done" in said) == ("rewards differ" in said)  # else before any stage
