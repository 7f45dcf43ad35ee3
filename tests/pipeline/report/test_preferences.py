"""The card says how preferences were learned; the summary, what they and rewards changed.

`test_result_tables.py` has the sentences and tables on what was measured.
"""

import copy
import json

import pytest

from pion.data.preference.summary import Part, Summary, Tally, Targets
from pipeline.job import Job
from pipeline.report.preferences import preferences_in_brief
from pipeline.report.rewards import rewards_in_brief
from pipeline.state.head import Head, StageRecord
from pipeline.state.record_json import Damaged
from pipeline.state.shared.folder import WITH_ADDITIONS
from tests.pipeline.report.test_model_card import JOB, card_of_history, history_of
from tests.pipeline.report.test_result_tables import EVERY, changed

SHA = "0123456789abcdef" * 4
TUNED = changed(EVERY["prefer"], {"preferences.reference": SHA})
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


ADDED = changed(TUNED, {"preferences.reference": f"{SHA}{WITH_ADDITIONS}{'e' * 64}"})
MIXTURE = {"kind": "hub", "repo": "allenai/llama-3.1-tulu-3-8b-preference-mixture"}


@pytest.mark.parametrize(
    ("learned", "text"),
    [
        (
            history(),
            f"the reference is the fine-tuned model, whose tensors have the SHA-256 `{SHA}`",
        ),
        (
            history(),
            "20,000 pairs were trained on, and 1,234 held out; left out: 66, because they are "
            "longer than a row (on average 3,000 tokens).",
        ),
        (history(), "[org/pairs](https://huggingface.co/datasets/org/pairs) (preferences)"),
        (history(sft_weight=0.2), "the loss is `dpo-norm` with β 5, plus 0.2 × the cross-entropy"),
        (history(loss="simpo"), "`simpo` with β 2.5 and γ 1.25, without a reference."),
        (history(sources=[MIXTURE]), "(parts of it are for non-commercial use only) (preferences)"),
        (history(ADDED), f"model, with additions (SHA-256 `{'e' * 64}`) to a base whose tensors"),
        (history({"loss": 3.0}), "the loss is `dpo-norm`"),  # evaluated before this existed
    ],
)
def test_the_card_says_how_preferences_were_learned(learned, text):
    card = card_of_history(learned)
    assert text in card
    assert "win rate" not in card.lower()
    assert ("non-commercial" in card) == ("non-commercial" in text)


def test_the_card_names_each_source_that_left_something_out():
    two = history_of(job(), results={"prefer": TUNED}, head=prepared(SUMMARY, SUMMARY))
    assert card_of_history(two).count("20,000 pairs were trained on") == 2


def test_the_summary_has_a_line():
    measured = {"accuracy": 0.91, "accuracy_sem": 0.04}
    sides = {"before": {"tokens": 30.0, "tokens_sem": 2.0}, "after": {"tokens": 20.0}}
    line = "91.0 % ± 4.0 right of 1,234"
    assert preferences_in_brief(measured | {"preferences": {"items": 1234}}) == line
    preferences = {"items": 1234, "answers": sides}
    assert preferences_in_brief(measured | {"preferences": preferences}) == (
        f"{line}; answers 30.0 ± 2.0 → 20.0 tokens"
    )
    rewards = {"before": {"reward": 0.5, "reward_sem": 0.1}, "after": {"reward": 0.75}}
    assert rewards_in_brief({"rewards": rewards | {"prompts": 1200}}) == (
        "0.500 ± 0.100 → 0.750 on average for 1,200 prompts"
    )
    assert preferences_in_brief({"loss": 3.0}) == rewards_in_brief({}) == ""


@pytest.mark.parametrize(
    "damage", [{"sources": [{}]}, {"sources": 3}, {"sources": [{"preferences": 1}]}]
)
def test_a_damaged_report_of_prepare_names_its_place(damage):
    head = Head().with_stage("prepare", StageRecord("d", 0.0, result={"prefer": damage}))
    with pytest.raises(Damaged, match=r"HEAD\.json is damaged: stages\.prepare\.result\.prefer"):
        card_of_history(history_of(job(), results={"prefer": TUNED}, head=head))


def test_a_result_that_is_no_number_is_damage():
    with pytest.raises(Damaged, match=r"prefer\.accuracy"):
        card_of_history(history({**TUNED, "accuracy": "all"}))
