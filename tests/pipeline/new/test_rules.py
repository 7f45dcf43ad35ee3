"""The rules of docs/new-rules.md, with their borders."""

from dataclasses import replace

import pytest

from pipeline.new.rules import (
    ENGLISH_BASES,
    MOST_EPOCHS,
    OTHER_BASES,
    PRESETS,
    TOKENS_PER_PARAMETER,
    Amount,
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


@pytest.mark.parametrize("english", [True, False])
def test_a_base_is_for_little_text_and_one_that_can_talk_for_conversations(english):
    instruct, base = ENGLISH_BASES if english else OTHER_BASES
    assert default_base(text(10), NOTHING, english=english) == base
    assert default_base(text(10), CHATS, english=english) == instruct
    assert default_base(NOTHING, CHATS, english=english) == instruct
    assert default_base(text(25), NOTHING, english=english) is None


def chats(count):
    return fine_tuning("sft", Amount(500 * count, count, long=700), SMALL)


def prompts(count):
    return fine_tuning("reinforce", replace(CHATS, count=count), SMALL)


def preferences(rows, count):
    return fine_tuning("prefer", CHATS, SMALL, sides=2).of_rows(rows, count)


FITS, CUT = "19 of 20 conversations fit", "the most that is proposed; longer conversations are cut"
# Of each stage, what its fields are.
STAGES = [
    # A base reads text three times at a low rate, within its context.
    (continued(text(10), replace(SMALL, context=512)), {"seq_len": 512, "lr": 1e-4}),
    (continued(text(10), SMALL), {"epochs": pytest.approx(3, rel=0.01)}),
    # Conversations make thirty steps if they can.
    (chats(100), {"held_out": 0.1, "global_batch": 4, "seq_len": 256, "lora": False, "lr": None}),
    (chats(2000), {"held_out": 0.05, "global_batch": 16, "seq_len": 256}),
    (chats(50_000), {"held_out": 0.01, "global_batch": 16, "seq_len": 256}),
    # A row has room for what a rehearsal has shown.
    (fine_tuning("sft", CHATS, SMALL, needed=256), {"seq_len": 256, "why_rows": FITS}),
    (fine_tuning("sft", CHATS, SMALL, needed=288), {"seq_len": 512, "why_rows": FITS}),
    (fine_tuning("sft", CHATS, SMALL, needed=2080), {"seq_len": 2048, "why_rows": CUT}),
    # A large base gets LoRA, and a small model of one's own a higher rate.
    (fine_tuning("sft", CHATS, replace(SMALL, parameters=600_000_000)), {"lora": True}),
    (fine_tuning("sft", CHATS, None), {"lr": 1e-4}),
    # A step has about 64 preferences, or there are thirty steps.
    (preferences(1000, 2000), {"global_batch": 32, "epochs": 1}),
    (preferences(120, 200), {"global_batch": 4, "epochs": 1}),
    (preferences(1000, 60_000), {"global_batch": 1, "epochs": 1}),
    (preferences(10, 20), {"global_batch": 4, "epochs": 1}),
    # A few prompts are read until there are a hundred steps.
    (prompts(100), {"epochs": 18, "steps": 102, "seq_len": SMALL.context}),
    (prompts(10_000), {"epochs": 1}),
]


@pytest.mark.parametrize(("stage", "fields"), STAGES)
def test_a_stage_follows_from_its_data_and_its_start(stage, fields):
    assert {name: getattr(stage, name) for name in fields} == fields


def test_less_money_buys_fewer_tokens_and_passes():
    stage = next(pretrainings(text(300)))
    assert shortened(stage, 0.25).tokens == stage.tokens // 4
    assert shortened(stage, 1e-9).steps == 1
    assert fewer_passes(fine_tuning("sft", CHATS, SMALL), 0.5).epochs == 1.5


def test_the_page_about_them_has_their_numbers():
    page = (REPOSITORY / "docs" / "new-rules.md").read_text(encoding="utf-8")
    for preset, (size, tokens) in PRESETS.items():
        assert f"| `{preset}` | {size:,} | {tokens:,} |" in page
    for source in (*ENGLISH_BASES, *OTHER_BASES):
        assert source in page
