"""How answers are judged while a stage trains: what is said of slow rewards, and counted."""

import time
from contextlib import contextmanager
from types import SimpleNamespace

from pion.generation.rollouts import Rollout
from pion.rewards.builtin import BuiltinReward
from pion.rewards.judge import Judge
from pipeline.training import prompts
from pipeline.training.prompts import _Judging


def test_a_slow_reward_is_named_once_and_its_time_is_no_hang(monkeypatch):
    monkeypatch.setattr(prompts, "SLOW", 0.02)
    seen, inside, notes = [], [], []

    def slow(answered):
        seen.append((answered.text, list(inside)))
        rewards["letters"].unjudged["no end"] += 1
        time.sleep(0.03)
        return 1.0

    @contextmanager
    def limited():
        inside.append("limited")
        yield
        inside.pop()

    judge = Judge([(BuiltinReward("letters", slow), 1.0), (BuiltinReward("f", lambda _: 0.0), 1.0)])
    rewards = judge.rewards
    chat_format = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"{len(ids)} ids"))
    job = SimpleNamespace(reinforce=SimpleNamespace(rewards=[]))
    rows = SimpleNamespace(question=lambda row: ("1+1?", "2", {}, "It is "))
    judging = _Judging(
        job, judge, chat_format, lambda note: notes.append(note.text), limited, set(), rows
    )
    groups = [[Rollout([5, 6, 7], [-1.0] * 3, finished=True)] * 2]
    for _ in range(2):
        judged = judging.judged([0], groups)
    assert seen == [("It is 2 ids", ["limited"])] * 4
    assert 0.03 <= float(judged.by_name["judge_seconds"].mean()) < 1
    slow_note, unjudged = sorted(notes, key=lambda note: "gave" in note)
    assert slow_note.startswith("the reward `letters` takes ")
    assert slow_note.endswith(" ms for these 2") or slow_note.endswith(" s for these 2")
    assert unjudged == "the reward `letters` gave 0 to 2 of 2 answers: no end"
