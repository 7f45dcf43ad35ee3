"""The card, the page and the summary say what preferences and rewards changed."""

import copy
import json

import pytest

from pion.data.preference.summary import Part, Summary, Tally, Targets
from pion.evaluation.item_scores import with_errors
from pion.measures import REWARDS
from pipeline.job import Job
from pipeline.report.blocks import Table
from pipeline.report.page_sections import measured_sections
from pipeline.report.tuned_answers import (
    LABELS_ONLY,
    preference_blocks,
    preferences_in_brief,
    reward_blocks,
    rewards_in_brief,
)
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged
from pipeline.state.shared.folder import WITH_ADDITIONS
from tests.pipeline.report.test_model_card import JOB, card_of_history, history_of

SHA = "0123456789abcdef" * 4
AGREES = {"accuracy": (0.8, 0.04), "where_longer": (0.9, 0.03), "where_shorter": (0.6, 0.06)}
AGREES = with_errors(AGREES | {"length_bias": (0.3, 0.07)})
ANSWERS = with_errors({"tokens": (30.0, 2.0), "stopped": (0.95, 0.02), "distinct": (0.9, 0.01)})
RULES = with_errors({"longer_wins": (0.62, 0.01), "shorter_wins": (0.38, 0.01)})
FOUND = {"start": "sft", "kind": "pairs", "of_means": True, "with_reference": True}
FOUND |= {"items": 1234, "prompts": 1200, "reference": SHA} | {
    "before": {"raw": AGREES, "normalized": {**AGREES, "accuracy": 0.7}},
    "after": {"raw": AGREES, "normalized": AGREES, "margin": {**AGREES, "accuracy": 0.91}},
    "change": {
        "raw": with_errors({"accuracy": (-0.02, 0.01)}),
        "normalized": with_errors({"accuracy": (0.1, 0.02)}),
    },
    "moved": with_errors({"chosen": (0.05, 0.01), "rejected": (-0.2, 0.02)}),
    "rules": RULES | {"longer": 700, "shorter": 400},
    "answers": {
        "prompts": 64,
        "most_tokens": 256,
        "before": ANSWERS,
        "after": {**ANSWERS, "tokens": 20.0},
        "change": {**ANSWERS, "tokens": -10.0, "stopped": 0.0, "distinct": 0.0},
        "shown": [{"prompt": "What is\n x?", "before": "It | is.", "after": "A name."}],
    },
}
CHANGES = {"text_change": (0.012, 0.003), "response_change": (-0.02, 0.01)}
TUNED = with_errors({"accuracy": (0.91, 0.04), **CHANGES}) | {"preferences": FOUND}
WHY = "longer than a row"
LONG = {WHY: 66}
SUMMARY = Summary(
    *("pairs", 2048),
    Part(20_000, 9000, 10**6, Targets(100, 90), Targets(120, 100), 0.6, 0.62),
    Part(1234, 500, 10**5, Targets(100, 90), Targets(120, 100), 0.6, 0.62),
    Tally(read=21_300, dropped=LONG, dropped_encoded=LONG, dropped_tokens={WHY: 66 * 3000}),
    2048,
)


def job(**prefer):
    fields = copy.deepcopy(JOB)
    source = {"kind": "hub", "repo": "org/pairs"}
    fields["prefer"] = {"steps": 60, "sources": [source], **prefer}
    return Job.model_validate(fields)


def prepared(*summaries):
    sources = [{"preferences": one.record()} for one in summaries]
    report = {"prefer": {"sources": json.loads(json.dumps(sources))}}
    return Head().with_stage("prepare", StageRecord("d", 0.0, result=report))


def history(tuned=TUNED, **prefer):
    return history_of(job(**prefer), results={"prefer": tuned}, head=prepared(SUMMARY))


def without(*names):
    """Return TUNED whose preferences lack what is named."""
    return {**TUNED, "preferences": {k: v for k, v in FOUND.items() if k not in names}}


ADDED = {**TUNED, "preferences": {**FOUND, "reference": f"{SHA}{WITH_ADDITIONS}{'e' * 64}"}}
MIXTURE = {"kind": "hub", "repo": "allenai/llama-3.1-tulu-3-8b-preference-mixture"}


@pytest.mark.parametrize(
    "text",
    [
        "Of 1,234 held-out pairs to 1,200 prompts, the model has 91.0 % ± 4.0 right",
        "agreement with these labels, and not with people.",
        "| the chosen answer is likelier, by the mean over its tokens | 70.0 % ± 4.0 | "
        "80.0 % ± 4.0 | +10.0 % ± 2.0 |\n",
        "by the sum over its tokens | 80.0 % ± 4.0 | 80.0 % ± 4.0 | −2.0 % ± 1.0 |\n",
        "ahead by what the loss compares (means, less those of the reference) | – | 91.0 % ± 4.0 | "
        "– |\n",
        '"the longer answer is better" has 62.0 % ± 1.0 right',
        "longer in 700 of the pairs, and shorter in 400",
        "| after training, by what the loss compares | 90.0 % ± 3.0 | 60.0 % ± 6.0 | +30.0 % ±",
        "of text by +0.012 ± 0.003 bits per byte and of responses",
        "by −0.020 ± 0.010 nats per token",
        "| tokens of an answer | 30.0 ± 2.0 | 20.0 ± 2.0 | −10.0 ± 2.0 |\n",
        f"the reference is the fine-tuned model, whose tensors have the SHA-256 `{SHA}`",
        "20,000 pairs were trained on, and 1,234 held out; left out: 66, because they are longer "
        "than a row (on average 3,000 tokens).",
        "[org/pairs](https://huggingface.co/datasets/org/pairs) (preferences)",
    ],
)
def test_the_card_says_what_preferences_changed_and_how_they_were_learned(text):
    card = card_of_history(history())
    assert text in card
    assert "win rate" not in card.lower()
    assert "non-commercial" not in card


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (history(sft_weight=0.2), "the loss is `dpo-norm` with β 5, plus 0.2 × the cross-entropy"),
        (history(loss="simpo"), "`simpo` with β 2.5 and γ 1.25, without a reference."),
        (history(sources=[MIXTURE]), "(parts of it are for non-commercial use only) (preferences)"),
        (history(ADDED), f"model, with additions (SHA-256 `{'e' * 64}`) to a base whose tensors"),
    ],
)
def test_the_card_says_how_other_preferences_were_learned(other, text):
    assert text in card_of_history(other)


def test_the_card_names_each_source_that_left_something_out():
    two = history_of(job(), results={"prefer": TUNED}, head=prepared(SUMMARY, SUMMARY))
    assert card_of_history(two).count("20,000 pairs were trained on") == 2


def test_a_run_that_was_evaluated_before_this_existed_has_no_such_tables():
    card = card_of_history(history({"loss": 3.0}))
    assert "held-out pairs" not in card
    assert "the loss is `dpo-norm`" in card
    assert preference_blocks({}, brief=False) == []
    assert preferences_in_brief({"loss": 3.0}) == ""


def test_where_all_chosen_answers_are_longer_nobody_can_tell_what_is_judged():
    rules = {**FOUND["rules"], "shorter": 0}
    parts = preference_blocks(
        {"prefer": {**TUNED, "preferences": FOUND | {"rules": rules}}}, brief=True
    )
    said = " ".join(part for part in parts if isinstance(part, str))
    assert (
        "In no pair the chosen answer is the shorter one (700 times it is the longer one)" in said
    )
    tables = [part for part in parts if isinstance(part, Table)]
    assert all("where it is shorter" not in table.header for table in tables)


def test_single_answers_have_no_tables_of_pairs():
    labels = {**FOUND, "kind": "labels", "before": {}, "change": {}, "desired": 0.55}
    labels["after"] = {"margin": {"accuracy": 0.7, "accuracy_sem": 0.01}}
    labels = {name: value for name, value in labels.items() if name != "rules"}
    parts = preference_blocks({"prefer": {**TUNED, "preferences": labels}}, brief=True)
    assert parts[0].startswith("Of 1,234 held-out single answers to 1,200 prompts, 70.0 % ± 1.0")
    assert "55.0 % are desired" in parts[0]
    assert parts[0].endswith(LABELS_ONLY)
    assert len([part for part in parts if isinstance(part, Table)]) == 1  # the written answers
    assert any(
        "of the desired answers by +0.050" in part for part in parts if isinstance(part, str)
    )


def test_what_was_not_measured_is_a_dash():
    unknown = {"raw": {"accuracy": None, "accuracy_sem": None}, "normalized": {}}
    found = {**FOUND, "before": unknown, "change": unknown, "moved": {"chosen": None}}
    parts = preference_blocks({"prefer": {"preferences": found}}, brief=True)
    table = next(part for part in parts if isinstance(part, Table))
    assert [row[1:] for row in table.rows] == [
        ("–", "80.0 % ± 4.0", "–"),
        ("–", "80.0 % ± 4.0", "–"),
        ("–", "91.0 % ± 4.0", "–"),
    ]


def test_only_the_page_shows_answers_in_words():
    (section,) = [
        one
        for one in measured_sections(history(), {"prefer": TUNED})
        if one["title"] == "Evaluation"
    ]
    shown = next(block for block in section["blocks"] if block.get("header", [""])[0] == "prompt")
    assert [list(row) for row in shown["rows"]] == [["What is x?", "It | is.", "A name."]]
    assert shown["numbers_from"] == 3
    assert "What is" not in card_of_history(history())


def test_the_summary_has_a_line():
    assert preferences_in_brief(TUNED) == (
        "91.0 % ± 4.0 right of 1,234; answers 30.0 ± 2.0 → 20.0 ± 2.0 tokens"
    )
    assert preferences_in_brief(without("answers")) == "91.0 % ± 4.0 right of 1,234"


@pytest.mark.parametrize(
    "damage", [{"sources": [{}]}, {"sources": 3}, {"sources": [{"preferences": 1}]}]
)
def test_a_damaged_report_of_prepare_names_its_place(damage):
    head = Head().with_stage("prepare", StageRecord("d", 0.0, result={"prefer": damage}))
    with pytest.raises(Damaged, match=r"HEAD\.json is damaged: stages\.prepare\.result\.prefer"):
        card_of_history(history_of(job(), results={"prefer": TUNED}, head=head))


def test_a_result_that_is_no_number_is_damage():
    wrong = {**TUNED, "accuracy": "all"}
    with pytest.raises(Damaged, match=r"prefer\.accuracy"):
        card_of_history(history(wrong))


SIDE = dict.fromkeys(REWARDS, (0.5, 0.1))


def tuned(**change):
    """Return what was measured where nothing has changed, except for these."""
    changed = with_errors({name: (change.get(name, 0.0), 0.1) for name in SIDE})
    after = with_errors(SIDE | {"reward": (0.75, 0.1)})
    shown = [{"prompt": "What is\n1 + 1?", "before": "3", "after": "2"}]
    found = {"start": "sft", "prompts": 1200, "answers": 4, "shown": shown}
    return found | {"before": with_errors(SIDE), "after": after, "change": changed}


@pytest.mark.parametrize(
    ("right", "right_of_any", "is_sharper"),
    [
        *((0.3, 0.1, True), (0.3, -0.3, True), (0.3, 0.3, False)),
        *((0.1, 0.1, False), (None, 0.1, False), (0.3, None, False)),
    ],
)
def test_a_model_may_be_right_more_often_but_not_to_more_prompts(right, right_of_any, is_sharper):
    found = tuned(**{"pass": right, "pass_any": right_of_any})
    blocks = reward_blocks({"reinforce": {"rewards": found}}, brief=True)
    assert any("but not to more prompts" in block for block in blocks) == is_sharper


def test_both_sides_and_the_difference_have_a_row_and_only_the_page_shows_answers():
    results = {"reinforce": {"rewards": tuned(reward=0.25), "text_change": 0.02}}
    intro, table, *others = reward_blocks(results, brief=False)
    assert intro.startswith("4 answers to each of 1,200 held-out prompts")
    assert table.rows[0] == ("mean reward", "0.500 ± 0.100", "0.750 ± 0.100", "+0.250 ± 0.100")
    assert table.rows[1][1:] == ("50.0 % ± 10.0", "50.0 % ± 10.0", "+0.0 % ± 10.0")
    assert any("of text by +0.020 bits per byte" in one for one in others if isinstance(one, str))
    assert [list(row) for row in others[-1].rows] == [["What is 1 + 1?", "3", "2"]]
    brief = reward_blocks(results, brief=True)
    assert sum(isinstance(block, Table) for block in brief) == 1
    assert reward_blocks({"reinforce": {}}, brief=True) == []
    line = rewards_in_brief(results["reinforce"])
    assert line == "0.500 ± 0.100 → 0.750 ± 0.100 on average for 1,200 prompts"
    assert rewards_in_brief({}) == ""
