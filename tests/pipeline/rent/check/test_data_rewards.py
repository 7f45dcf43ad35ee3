"""`pion check` judges the records' right answers, and refuses records that rewards can't judge."""

import json

import pytest

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.rent.check.data import check_rewards
from pipeline.rent.check.inputs import local_inputs
from tests.pipeline.rent.check.checked_job import Case
from tests.support.chat_templates import CHATML
from tests.support.instruct_model import write_instruct_model

SOURCES = [{"kind": "jsonl", "path": "questions.jsonl"}]


@pytest.fixture
def check(tmp_path):
    def check(rewards, *answers, code="", most=16, **changes):
        lines = ({"question": f"What is {n}?", "answer": text} for n, text in enumerate(answers))
        (tmp_path / "questions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (tmp_path / "rewards.py").write_text(code)
        fields = {"sources": SOURCES, "rewards": rewards, "max_tokens": most, "held_out": 0.3}
        job = read_job(Case(tmp_path).path(reinforce=fields, **changes))
        return [(row.ok, row.words) for row in check_rewards(job)], job

    return check


def test_the_right_answers_are_judged_next_to_empty_ones(check):
    rows, _ = check(["number", "exact"], "it is #### 3", "#### 4")
    assert rows == [
        (True, "the right answers of the first records get 1 on average"),
        (True, "empty answers of the first records get 0 on average"),
    ]
    rows, _ = check([{"kind": "json", "keys": ["name"]}], "3", "4")
    assert (rows[2][0], "right answers get what empty answers get" in rows[2][1]) == (None, True)


def test_a_record_without_a_number_is_refused_before_anything_is_spent(check):
    with pytest.raises(BadInput, match=r"questions.jsonl:2: its answer has no number"):
        check(["number"], "#### 3", "three")


def test_a_function_is_called_and_travels_with_the_job(check):
    reward = {"kind": "python", "path": "rewards.py", "function": "f"}
    rows, job = check([reward], "a", "b", code="def f(text): return len(text)")
    assert "get 1 on average" in rows[0][1]
    assert "reinforce.rewards.0.path" in {found.key for found in local_inputs(job, prepared=True)}
    with pytest.raises(BadInput, match=r"IndexError: .*\(line 1\). Correct the function"):
        check([reward], "a", code="def f(text): return [][0]")
    with pytest.raises(BadInput, match="in another process"):
        check([reward], "a", "b", code="def f(text): return hash(text) % 97")


def test_a_small_model_on_this_machine_is_asked_first(check, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.prompts.FIRST_PROMPTS", 12)
    write_instruct_model(tmp_path / "base", "smollm2", CHATML)
    start = {"model": {"from": "base"}, "data": {}, "most": 100}
    start |= dict.fromkeys(("tokenizer", "pretrain", "sft"))
    reward = [{"kind": "python", "path": "rewards.py", "function": "f"}]
    rows, _ = check(reward, *"a" * 60, code="def f(text): return len(text)", **start)
    ok, words = rows[-1]
    assert words.startswith("8 answers to each of 8 prompts: mean reward ")
    assert (ok, words.count("reward ")) == (True, 1 + 2 * 3)
    with pytest.raises(BadInput, match=r"each of 12 .* To 0% .*all answers are wrong"):
        check(reward, *"a" * 60, code="def f(text): return 0", **start)


def test_what_is_slow_or_empty_is_said(check):
    reward = [{"kind": "python", "path": "rewards.py", "function": "f"}]
    slow = "import time\ndef f(text):\n time.sleep(0.11)\n return len(text)"
    rows, _ = check(reward, "a", "b", code=slow)
    assert rows[2][1].startswith("judging takes ")
    with pytest.raises(BadInput, match="the corpus is empty: no line in"):
        check(["number"])
