"""The rules of docs/own-data.md, with their borders."""

from dataclasses import replace

import pytest

from pipeline.new.rules import (
    ENGLISH_BASES,
    MOST_EPOCHS,
    OTHER_BASES,
    PRESETS,
    TOKENS_PER_PARAMETER,
    Amount,
    FromRandom,
    StartModel,
    continued,
    default_base,
    fewer_passes,
    fine_tuning,
    pretrainings,
    shortened,
    vocabulary,
)
from tests.paths import REPOSITORY

SMALL = StartModel(135_000_000, 2048)
NOTHING = Amount(0, 0, 0)
CHATS = Amount(10**6, count=1000, long=1500)


def text(megabytes):
    return Amount(int(megabytes * 1e6), count=100_000, long=8000)


@pytest.mark.parametrize(
    ("megabytes", "largest"),
    [
        (1, "pion2-max-nano"),
        (200, "pion2-max-nano"),
        (300, "pion2-max-nano"),
        (1_800, "pion2-max-micro"),
        (2_700, "pion2-max-small"),
        (7_500, "pion2-max-large"),
        (20_000, "pion2-max-xl"),
    ],
)
def test_the_largest_preset_has_twenty_tokens_for_each_parameter_in_four_passes(megabytes, largest):
    found = list(pretrainings(text(megabytes)))
    assert found[0].preset == largest
    assert found[-1].preset == "pion2-max-nano"
    for stage in found:
        assert stage.epochs <= MOST_EPOCHS * 1.001
        wanted = TOKENS_PER_PARAMETER * stage.parameters
        assert stage.tokens == wanted or (
            stage.preset == "pion2-max-nano" and stage.tokens < wanted
        )


def test_a_smaller_preset_always_costs_less():
    tokens = [s.tokens * s.parameters for s in pretrainings(text(30_000))]
    assert tokens == sorted(tokens, reverse=True)
    assert len(tokens) == len(PRESETS)


@pytest.mark.parametrize(
    ("megabytes", "size"), [(0.5, 2048), (5, 4096), (50, 8192), (500, 16384), (5000, 32768)]
)
def test_the_vocabulary_follows_from_the_text(megabytes, size):
    assert vocabulary(int(megabytes * 1e6), "pion2-max-xl") == size
    assert vocabulary(int(megabytes * 1e6), "pion2-max-nano") == min(size, 16384)


def test_there_are_a_thousand_steps_unless_the_batch_is_at_its_smallest():
    for megabytes in (1, 10, 100, 1000, 10_000):
        for stage in pretrainings(text(megabytes)):
            assert stage.steps >= 1000 or stage.global_batch <= 8


@pytest.mark.parametrize("megabytes", [0.05, 0.2, 1, 10])
def test_little_text_still_fills_batches_and_held_out_rows(megabytes):
    stage = next(pretrainings(replace(text(megabytes), count=100)))
    rows = stage.own_tokens // stage.seq_len
    assert rows * stage.held_out >= 4
    assert rows * (1 - stage.held_out) >= stage.global_batch


def test_text_of_fewer_than_five_million_tokens_starts_from_a_base():
    assert default_base(text(10), NOTHING, english=True) == ENGLISH_BASES[1]
    assert default_base(text(10), NOTHING, english=False) == OTHER_BASES[1]
    assert default_base(text(25), NOTHING, english=True) is None


def test_conversations_alone_start_from_a_model_that_can_talk():
    assert default_base(NOTHING, CHATS, english=True) == ENGLISH_BASES[0]
    assert default_base(NOTHING, CHATS, english=False) == OTHER_BASES[0]


def test_a_base_is_trained_on_text_at_a_low_rate_within_its_context():
    stage = continued(text(10), replace(SMALL, context=512))
    assert not isinstance(stage, FromRandom)
    assert (stage.seq_len, stage.lr) == (512, 1e-4)
    assert stage.epochs == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize(
    ("conversations", "held_out", "batch"), [(100, 0.1, 4), (2000, 0.05, 16), (50_000, 0.01, 16)]
)
def test_conversations_make_thirty_steps_if_they_can(conversations, held_out, batch):
    stage = fine_tuning("sft", Amount(500 * conversations, conversations, long=700), SMALL)
    assert (stage.held_out, stage.global_batch, stage.seq_len) == (held_out, batch, 256)
    assert (stage.lora, stage.lr) == (False, None)


@pytest.mark.parametrize(
    ("needed", "seq_len", "why"),
    [(256, 256, "19 of 20"), (288, 512, "19 of 20"), (2080, 2048, "the most that is proposed; ")],
)
def test_a_row_has_room_for_what_a_rehearsal_found(needed, seq_len, why):
    stage = fine_tuning("sft", CHATS, SMALL, needed=needed)
    assert (stage.seq_len, stage.why_rows.startswith(why)) == (seq_len, True)


def test_a_large_base_gets_lora_and_a_small_model_of_ones_own_a_higher_rate():
    assert fine_tuning("sft", CHATS, replace(SMALL, parameters=600_000_000)).lora
    assert fine_tuning("sft", CHATS, None).lr == 1e-4


@pytest.mark.parametrize(
    ("rows", "count", "batch"), [(1000, 2000, 32), (120, 200, 4), (1000, 60_000, 1), (10, 20, 4)]
)
def test_a_step_of_preferences_has_about_64_of_them_or_there_are_thirty_steps(rows, count, batch):
    stage = fine_tuning("prefer", CHATS, SMALL, sides=2).of_rows(rows, count)
    assert (stage.global_batch, stage.epochs) == (batch, 1)


def test_a_few_prompts_are_read_until_there_are_a_hundred_steps():
    few, many = (fine_tuning("reinforce", replace(CHATS, count=n), SMALL) for n in (100, 10_000))
    assert (few.epochs, few.steps, few.seq_len) == (18, 102, SMALL.context)
    assert many.epochs == 1


def test_less_money_buys_fewer_tokens_and_passes():
    stage = next(pretrainings(text(300)))
    assert shortened(stage, 0.25).tokens == stage.tokens // 4
    assert shortened(stage, 1e-9).steps == 1
    assert fewer_passes(fine_tuning("sft", CHATS, SMALL), 0.5).epochs == 1.5


def test_the_page_about_them_has_their_numbers():
    page = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
    for preset, (size, tokens) in PRESETS.items():
        assert f"| `{preset}` | {size:,} | {tokens:,} |" in page
    for source in (*ENGLISH_BASES, *OTHER_BASES):
        assert source in page
