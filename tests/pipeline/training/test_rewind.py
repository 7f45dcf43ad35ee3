"""Rewinding: exactly which rows are left out, and when a run gives up."""

import dataclasses
import json
import random
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.order import rank_rows, step_rows
from pion.errors import PionError, Trouble
from pipeline.state.claim import claim_run
from pipeline.state.head import Head, SkippedRows
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training.rewind import plan_rewind, rows_to_skip
from tests.support.states import an_entry, someone

ROWS = 6  # in a step of the tests below
DIGEST = "d"


def rows_of(step):
    return ROWS * (step - 1), ROWS * step


def skipped_at(step, why="loss nan", digest=DIGEST):
    first, stop = rows_of(step)
    return SkippedRows(first, stop, step=step, epoch=1, digest=digest, why=why, at=5.0)


def head_with(skipped, saved=None):
    head = Head(epoch=7)
    for record in skipped:
        head = head.with_skipped("pretrain", record)
    return head if saved is None else head.with_checkpoint(an_entry(saved))


def plan(head, step, max_rewinds=3, digest=DIGEST):
    trouble = Trouble(step, rows_of(step), "loss inf")
    return plan_rewind(head, "pretrain", digest, trouble, max_rewinds, now=9.0)


# ---------------------------------------------------------------- no row lost, none twice


@dataclasses.dataclass
class Saved:
    """A checkpoint, with the rows that led to it."""

    step: int = 0
    next_row: int = 0
    skipped: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    trained: list[int] = dataclasses.field(default_factory=list)


def train_with_trouble(bad, steps, global_batch, start, chance):
    """Return the rows that a run commits although it is interrupted and rescaled at random."""
    head, saves, interruptions = Head(), [start], 5
    while True:
        head = dataclasses.replace(head, epoch=head.epoch + 1)
        if len(saves) > 1 and chance.random() < 0.2:
            saves.pop()  # the newest checkpoint is damaged
        at = saves[-1]
        head = head.restored("pretrain", at.step, now=0.0)
        step, next_row, trained = at.step, at.next_row, list(at.trained)
        skipped = rows_to_skip(head, "pretrain", DIGEST, next_row, at.skipped)
        world_size, micro_batch = chance.randint(1, global_batch), chance.randint(1, 4)
        while step < steps:
            rows, after = step_rows(next_row, global_batch, skipped)
            shares = [rank_rows(rows, r, world_size, micro_batch) for r in range(world_size)]
            computed = [row for share in shares for part in share for row in part]
            if bad & set(computed):
                trouble = Trouble(step + 1, (next_row, after), "loss nan")
                record = plan_rewind(head, "pretrain", DIGEST, trouble, 99, now=0.0)
                head = head.with_skipped("pretrain", record)
                break
            step, next_row, trained = step + 1, after, trained + computed
            if chance.random() < 0.4:
                saves.append(Saved(step, next_row, json_pairs(skipped), trained))
                head = head.with_checkpoint(an_entry(step))
            if interruptions and chance.random() < 0.1:
                interruptions -= 1
                break
        else:
            return trained, head


def json_pairs(ranges):
    return [(first, stop) for first, stop in json.loads(json.dumps(ranges))]


@given(
    bad=st.sets(st.integers(0, 150), max_size=8),
    steps=st.integers(1, 30),
    global_batch=st.integers(1, 7),
    inherited=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), max_size=2),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_what_is_trained_is_the_rows_in_their_order_but_those_recorded_as_skipped(
    bad, steps, global_batch, inherited, seed
):
    """For any world size, micro-batch, interruptions and number of troubles."""
    before = [(first, first + rows) for first, rows in inherited]  # from the forked run
    start = Saved(skipped=before)
    trained, head = train_with_trouble(bad, steps, global_batch, start, random.Random(seed))

    records = head.skipped.get("pretrain", ())
    left_out = {row for first, stop in before for row in range(first, stop)}
    for record in records:
        rows = set(range(record.first, record.stop)) - left_out
        assert len(rows) == global_batch  # only the step's rows
        assert bad & rows
        left_out |= rows
    expected = (row for row in count() if row not in left_out)
    assert trained == list(islice(expected, steps * global_batch))


def test_a_second_trouble_leaves_out_only_rows_not_yet_left_out():
    """Its step began at the first trouble's row, without the rows that the first had skipped."""
    head = head_with([skipped_at(10)], saved=9)
    trouble = Trouble(10, (rows_of(10)[0], rows_of(11)[1]), "loss nan")
    record = plan_rewind(head, "pretrain", DIGEST, trouble, 3, now=9.0)
    assert (record.first, record.stop) == rows_of(11)
    head = head.with_skipped("pretrain", record)
    assert rows_to_skip(head, "pretrain", DIGEST, ROWS * 9) == [(54, 66)]


def test_rows_before_the_checkpoint_are_left_to_what_it_says_itself():
    """The checkpoint may come from an attempt that trained on them."""
    head = head_with([skipped_at(3), skipped_at(8)])
    assert rows_to_skip(head, "pretrain", DIGEST, next_row=30) == [rows_of(8)]
    assert rows_to_skip(head, "pretrain", DIGEST, 30, [(0, 2)]) == [(0, 2), rows_of(8)]
    assert rows_to_skip(head, "pretrain", DIGEST, next_row=44) == [(44, 48)]
    assert rows_to_skip(head, "pretrain", DIGEST, next_row=48) == []


def test_rows_of_another_stage_or_of_other_data_are_not_left_out():
    head = head_with([skipped_at(3), skipped_at(8, digest="with another seed")])
    assert rows_to_skip(head, "pretrain", DIGEST, 0) == [rows_of(3)]
    assert rows_to_skip(head, "sft", DIGEST, 0) == []


# ---------------------------------------------------------------- when to give up


def test_a_rewind_records_where_when_and_why():
    assert plan(head_with([], saved=40), step=45) == SkippedRows(
        first=264, stop=270, step=45, epoch=7, digest=DIGEST, why="loss inf", at=9.0
    )


def test_spikes_a_hundred_saved_steps_apart_never_stop_a_run():
    head = head_with([skipped_at(step) for step in range(100, 5000, 100)], saved=5000)
    assert plan(head, step=5001, max_rewinds=1).step == 5001


def test_rows_are_recorded_once_though_the_commit_is_repeated():
    head = head_with([skipped_at(101)], saved=100)
    assert head.with_skipped("pretrain", skipped_at(101)) == head


def test_troubles_in_a_row_stop_the_run_after_the_last_try():
    again = dataclasses.replace(skipped_at(101), at=6.0)
    head = head_with([skipped_at(101), again], saved=100)
    head = head.with_skipped("pretrain", plan(head, step=102))
    with pytest.raises(PionError, match="pretrain went wrong 4 times"):
        plan(head, step=103)


@pytest.mark.parametrize(("saved", "counting"), [(106, 3), (200, 3), (201, 2), (204, 1), (205, 0)])
def test_saving_a_few_steps_between_troubles_is_not_getting_past_them(saved, counting):
    """Otherwise a diverging run that saves every other step would rewind forever."""
    head = head_with([skipped_at(step) for step in (101, 103, 105)], saved)
    assert plan(head, step=saved + 1, max_rewinds=counting + 1)
    with pytest.raises(PionError):
        plan(head, step=saved + 1, max_rewinds=counting)


def test_troubles_of_another_stage_or_digest_use_up_no_try():
    """So after giving up, a run with a lower learning rate has all its tries again."""
    head = head_with([skipped_at(step, digest="old lr") for step in (1, 2, 3)])
    assert plan(head, step=1)
    head = Head()
    for step in (1, 2, 3):
        head = head.with_skipped("prior", skipped_at(step))
    assert plan(head, step=1)


def test_checkpoints_of_another_stage_forgive_nothing():
    head = head_with([skipped_at(step) for step in (5, 6, 7)])
    with pytest.raises(PionError):
        plan(head.with_checkpoint(an_entry(9000, stage="prior")), step=8)


def test_no_rewinds_allowed_means_stopping_at_the_first_trouble():
    with pytest.raises(PionError, match="pretrain went wrong once") as raised:
        plan(head_with([], saved=40), step=45, max_rewinds=0)
    assert "checkpoint.max_rewinds=1" in str(raised.value)


def test_giving_up_says_what_happened_where_what_is_safe_and_the_ways_on():
    troubles = [skipped_at(1101, "loss 9.1, above 3 × …"), skipped_at(1102), skipped_at(1103)]
    with pytest.raises(PionError) as raised:
        plan(head_with(troubles, saved=1095), step=1104)
    text = str(raised.value)
    for expected in (
        "went wrong 4 times",
        "step 1,101 on rows 6,600 to 6,605 gave loss 9.1, above 3 ×",
        "step 1,103 on rows 6,612 to 6,617 gave loss nan",
        "step 1,104 on rows 6,618 to 6,623 gave loss inf",
        "earlier checkpoint of step 1,095 is safe",
        "pretrain.lr",
        "pretrain.warmup_steps",
        "pretrain.clip",
        "pion fork RUN NEW --at 1095",
        "pion run JOB checkpoint.max_rewinds=6",
    ):
        assert expected in text
    assert raised.value.exit_code == 1


def test_giving_up_before_anything_was_saved_promises_no_checkpoint():
    with pytest.raises(PionError) as raised:
        plan(head_with([skipped_at(step) for step in (1, 2, 3)]), step=4)
    assert "This stage has no checkpoint yet" in str(raised.value)
    assert "fork" not in str(raised.value)


# ---------------------------------------------------------------- in HEAD


def test_redoing_a_stage_forgets_what_it_skipped_and_no_other_stages():
    head = head_with([skipped_at(3)]).with_skipped("sft", skipped_at(4))
    assert head.without_stages(["sft"], 0.0).skipped == {"pretrain": (skipped_at(3),)}


def test_raising_steps_keeps_what_was_skipped():
    head = head_with([skipped_at(3), skipped_at(8, digest="other")]).with_digest(
        "pretrain", DIGEST, "more steps"
    )
    assert rows_to_skip(head, "pretrain", "more steps", 0) == [rows_of(3)]
    assert rows_to_skip(head, "pretrain", "other", 0) == [rows_of(8)]


def test_an_attempt_that_leaves_out_other_rows_is_not_one_more_without_progress(tmp_path):
    """`max_rewinds` limits these. The limit on attempts is for those that end the same way."""
    run = RunState(FileStore(tmp_path / "runs"), "demo")
    for _ in range(4):
        claim = claim_run(run, someone())
        claim.release()
    claim = claim_run(run, someone())
    assert claim.head.epoch - claim.head.committed_epoch == 5
    head = claim.commit(lambda head: head.with_skipped("pretrain", skipped_at(3)))
    assert head.epoch == head.committed_epoch
