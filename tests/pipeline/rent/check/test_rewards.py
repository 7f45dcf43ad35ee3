"""`pion check` asks a small model on this machine whether rewards would teach it anything.

The other rows on rewards are in rows.yaml."""

import json
import re

import pytest

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.rent.check.data import check_rows
from pipeline.rent.check.inputs import local_inputs
from pipeline.rent.check.rewards import check_rewards
from tests.pipeline.rent.check.checked_job import Case
from tests.support.chat_templates import CHATML
from tests.support.instruct_model import write_instruct_model


def test_a_small_model_on_this_machine_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.prompts.FIRST_PROMPTS", 12)
    write_instruct_model(tmp_path / "base", "smollm2", CHATML)
    lines = ({"question": f"What is {n}?", "answer": "a"} for n in range(60))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    code = tmp_path / "rewards.py"
    code.write_text("def f(text): return len(text)")
    reward = {"kind": "python", "path": "rewards.py", "function": "f"}
    fields = {"sources": [{"kind": "jsonl", "path": "questions.jsonl"}], "rewards": [reward]}
    start = {
        "model": {"from": "base"},
        "data": {},
        **dict.fromkeys(("tokenizer", "pretrain", "sft")),
    }
    job = read_job(
        Case(tmp_path).path(reinforce={**fields, "max_tokens": 100, "held_out": 0.3}, **start)
    )
    assert "reinforce.rewards.0.path" in {each.key for each in local_inputs(job, prepared=True)}
    (first,) = (row.words for row in check_rows(job) if row.name == "the first")
    assert re.match(r"what the model is asked:\n[^⟦]*What is 0\?[^⟦]*\nright answer: a$", first)
    *_, row = check_rewards(job)
    assert row.words.startswith("8 answers to each of 8 prompts: mean reward ")
    assert (row.ok, row.words.count("reward ")) == (True, 1 + 2 * 3)
    code.write_text("def f(text): return 0")
    with pytest.raises(BadInput, match=r"each of 12 .* To 0% .*all answers are wrong"):
        list(check_rewards(job))
