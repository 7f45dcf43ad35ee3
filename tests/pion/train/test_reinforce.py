"""A stage of rewards raises them, and is the same again after a kill, in parts, and on ranks."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pion.errors import BadInput
from pion.generation.rollouts import Rollout
from pion.model.loss import IGNORED
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import Groups, Judged, Prompts
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import run, tiny_decoder
from tests.support.ranks import ask_ranks
from tests.support.tiny_config import drawn, tiny_config
from tests.support.whole_state import same, train, trained_and_resumed

BATCH, ANSWERS = 5, 4
SILENT = 2  # the step whose groups have equal rewards


def prompt(row):
    return [(7 * row + place) % 60 for place in range(1 + row % 4)]


def rewards(rows, groups, silent=lambda row: row // BATCH == SILENT):
    """An answer is as good as its share of even ids; those of the silent step are all as good."""
    found = [
        [silent(row) or share_of_even(answer.ids) for answer in group]
        for row, group in zip(rows, groups, strict=True)
    ]
    return Judged(torch.tensor(found, dtype=torch.float64), {})


def share_of_even(ids):
    return sum(token % 2 == 0 for token in ids) / len(ids)


def make(rank=0, seed=0, lr=1e-2, model=None, judge=rewards, **plan):
    how = {"steps": 40, "lr": lr, "schedule": "constant", "weight_decay": 0.0}
    learning = Reinforcement(answers=ANSWERS, max_tokens=8)
    settings = TrainSettings(global_batch=BATCH, learning=learning, **how)
    prompts = Prompts(prompt, judge, 24, 4, frozenset([3]), 62)
    plan = ComputePlan(**{"micro_batch": 2, "threads": 1} | plan)
    return Trainer(model or tiny_decoder(seed), prompts, settings, plan, rank=rank)


def test_rewards_rise_and_what_is_sampled_is_what_is_learned():
    steps = run(make(), 30)
    first, last = ([m["reward"] for m in part] for part in (steps[3:9], steps[-6:]))
    assert sum(last) / 6 > sum(first) / 6 + 0.2
    assert [m["loss"] for m in steps] == [-m["reward"] for m in steps]
    assert max(m["mismatch"] for m in steps) < 1e-5


SHOWING = {
    "all is seen": {},
    "a row is not longer than a window": {"windows": {"tokens": 48, "block": 4}},
}
HIDING = {
    "windows": {"windows": {"tokens": 8, "block": 4}},
    "slots": {"slots": {"per_segment": 2, "segment": 4, "window": 2}},
}


@pytest.mark.parametrize("name", [*SHOWING, *HIDING])
def test_answers_that_see_all_of_their_prompt_share_it_as_a_row_has_room(name):
    trainer = make(model=drawn(tiny_config(**(SHOWING | HIDING)[name])))
    rows = trainer._feed.take(0, []).micro_batches
    read = sum(int((each.documents >= 0).sum()) for each in rows)
    learned = sum(int((each.targets != IGNORED).sum()) for each in rows)
    prompts = sum(len(prompt(row)) - 1 for row in range(BATCH))
    times = (read - learned) / prompts
    assert times == ANSWERS if name in HIDING else 1 <= times <= 2
    assert max(m["mismatch"] for m in run(trainer, 2)) < 1e-5


@pytest.mark.parametrize("rows", [1, BATCH])
def test_the_mismatch_is_the_mean_distance_of_the_tokens_that_are_learned(rows):
    trainer = make(judge=partial(rewards, silent=lambda row: row % BATCH >= rows))
    take = trainer._feed.take

    def moved(*place):
        batch = take(*place)
        for each in batch.micro_batches:
            apart = 0.25 * (each.targets != IGNORED)
            apart[:, ::2] *= -1
            each.sampled.log_probs.add_(apart)
        return batch

    trainer._feed.take = moved
    assert [m["mismatch"] for m in run(trainer, 2)] == pytest.approx([0.25, 0.25], abs=1e-5)


def test_in_bf16_answers_are_sampled_by_a_copy_of_the_weights_of_now():
    steps = run(make(dtype="bfloat16"), 12)
    assert max(m["mismatch"] for m in steps) < 0.02
    assert steps[-1]["reward"] > steps[0]["reward"]


def test_a_step_without_any_difference_changes_nothing_and_goes_on():
    trainer = make()
    train(trainer, SILENT)
    before = {name: weights.clone() for name, weights in trainer.state().model.items()}
    train(trainer, 1)
    assert all(torch.equal(w, before[name]) for name, w in trainer.state().model.items())
    assert (trainer.step, trainer.next_row) == (SILENT + 1, BATCH * (SILENT + 1))
    train(trainer, 1)
    *_, silent, last = trainer.drain_metrics()
    assert (silent["signal"], silent["grad_norm"], silent["reward"]) == (0, 0, 1)
    assert last["signal"] > 0.5


def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_run():
    assert same(*trained_and_resumed(make(), make(seed=9), 4, 5))


@pytest.mark.parametrize("plan", [{"micro_batch": 1}, {"micro_batch": 64}, {"rollout_rows": 4}])
def test_how_a_step_is_divided_changes_its_gradient_by_rounding_alone(plan):
    wanted = ("loss", "grad_norm", "tokens", "signal", "unfinished")
    one, other = ([m[key] for key in wanted] for m in (*run(make(), 1), *run(make(**plan), 1)))
    assert one == pytest.approx(other, rel=1e-6)


def work(rank, folder):
    """On two ranks of a step's five prompts, one rank has three."""
    del folder
    steps = run(make(rank, seed=70 + rank, world_size=2), 8)
    return [[m[key] for key in ("loss", "grad_norm", "tokens", "signal")] for m in steps]


@pytest.mark.slow
def test_two_ranks_follow_one(tmp_path):
    ranks = ask_ranks(partial(work), tmp_path, 2)
    alone = [
        [m[k] for k in ("loss", "grad_norm", "tokens", "signal")] for m in run(make(seed=70), 8)
    ]
    assert ranks[0] == ranks[1]
    for ours, one in zip(ranks[0], alone, strict=True):
        assert ours == pytest.approx(one, rel=1e-4)


def test_held_out_prompts_are_measured_by_draws_of_their_own_the_same_each_time():
    trainer = make()
    own = trainer._feed._prompts
    held_out = replace(own, held_out=True)
    found = [trainer.evaluate(held_out, range(5), 1, end_of_text=0) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].loss == -found[0].measures["reward"]
    # Answers to a prompt are alike, so the error is that of prompts.
    rewards = trainer._feed.sampled(held_out, range(5)).judged.rewards.mean(dim=1)
    assert found[0].sem == pytest.approx(float(rewards.std()) / 5**0.5)
    assert found[0].measures != trainer.evaluate(own, range(5), 1, end_of_text=0).measures
    with pytest.raises(BadInput, match="no held-out prompts"):
        trainer.evaluate(held_out, range(0), 1, end_of_text=0)


def test_what_is_reported_of_answers_are_means_over_each_prompt():
    lengths = [[(2, True), (4, False)], [(1, True), (1, True)]]
    answers = [[Rollout([7] * n, [-0.5] * n, end) for n, end in each] for each in lengths]
    rewards = torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    found = Groups([], answers, Judged(rewards, {"reward_exact": 2 * rewards})).means(pass_at=1.0)
    assert {name: values.tolist() for name, values in found.items()} == {
        "reward": [0.75, 0],
        "reward_exact": [1.5, 0],
        "pass": [0.5, 0],
        "pass_any": [1, 0],
        "signal": [1, 0],
        "unfinished": [0.5, 0],
        "answer_tokens": [3, 1],
        "answer_nats": [1.5, 0.5],
    }


def test_entropy_is_in_nats_per_token_in_training_and_evaluation():
    trainer = make()
    own = trainer._feed._prompts
    answers = [one for group in trainer._feed.sampled(own, range(BATCH)).answers for one in group]
    nats, tokens = -sum(sum(a.log_probs) for a in answers), sum(len(a.ids) for a in answers)
    evaluated = trainer.evaluate(own, range(BATCH), 1, end_of_text=0).measures
    found = [evaluated["entropy"], run(trainer, 1)[0]["entropy"]]
    assert found == pytest.approx([nats / tokens] * 2)


def test_an_advantage_is_the_distance_from_the_mean_of_its_own_group():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 4], [2, 2, 2, 2]], dtype=torch.float64)
    plain = Reinforcement().advantages(rewards)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [-1, -1, -1, 3], [0, 0, 0, 0]]
    # The mean of six equal rewards is rounded.
    assert not Reinforcement(answers=6).advantages(rewards.new_full((1, 6), 0.1)).any()
    scaled = Reinforcement(scale="std").advantages(rewards)
    # The standard deviation of a sample: the root of 12 / 3.
    assert scaled[1].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5], rel=1e-3)
    assert not scaled[2].any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"answers": 1}, "at least 2"), ({"max_tokens": 0}, "at least 1"), ({"scale": "x"}, "one of")],
)
def test_settings_without_sense_are_refused(fields, words):
    with pytest.raises(BadInput, match=words):
        Reinforcement(**fields)
