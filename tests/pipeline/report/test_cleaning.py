"""The page, the card and the summary say what data.clean left out; damage is a note."""

import dataclasses
import json

import pytest

from pipeline.report.cleaning import cleaning_in_words, cleaning_sections
from pipeline.state.head import StageRecord
from pipeline.state.record_json import Damaged
from tests.pipeline.report.test_model_card import card_of_history
from tests.pipeline.report.test_page_data import DONE, history, told

CLEANED = {
    "documents": 1200,
    "kept": 1000,
    "bytes": 3_500_000,
    "sources": [{"documents": 700, "kept": 600}, {"documents": 500, "kept": 400}],
    "dropped": [
        {
            "rule": "near-copy",
            "documents": 150,
            "examples": [
                {
                    "source": 1,
                    "document": "b.jsonl:7",
                    "text": "A text\x1b[2J that ends here",
                    "like": {"source": 0, "document": "a.txt#1", "text": "A text"},
                }
            ],
        },
        {
            "rule": "holds an evaluation item",
            "documents": 50,
            "examples": [
                {"source": 0, "document": "a.txt#9", "text": "A leak", "item": "pack: What? This"}
            ],
        },
    ],
    "sets": [
        {
            "name": "pack",
            "digest": "ab" * 32,
            "items": 40,
            "unjudged": 3,
            "overlapped": {"share": 0.25, "low": 0.14, "high": 0.4},
            "with_answer": None,
            "control": None,
            "verdict": "no verdict: there is no held-out text to compare with",
        }
    ],
    "seconds": 12.5,
}
REPORT = {"sources": [{"name": "a.txt"}, {"name": "b.jsonl"}], "cleaned": CLEANED}


def head_with(report):
    record = StageRecord("pp", 5.0, result={"pretrain": report})
    return dataclasses.replace(DONE, stages={"prepare": record, **DONE.stages})


def test_the_page_shows_counts_examples_and_evaluation_sets_as_safe_text():
    section = next(s for s in told(head=head_with(REPORT))["measured"] if s["title"] == "Cleaning")
    shown = json.dumps(section, ensure_ascii=False)
    assert (
        "200 of 1,200 documents were left out (16.7 %): near-copy 150, holds an evaluation item 50"
    ) in shown
    assert '["a.txt", "700", "600"]' in shown
    assert "b.jsonl, b.jsonl:7: A text" in shown
    assert "is like a.txt, a.txt#1: A text" in shown
    assert "holds pack: What? This" in shown
    assert "25.0 % (95 %: 14.0 to 40.0)" in shown
    assert "\\u001b" not in shown


def test_the_card_says_it_in_a_sentence():
    card = card_of_history(history(head=head_with(REPORT)))
    assert "The text was cleaned before training: 200 of 1,200 documents were left out" in card


@pytest.mark.parametrize("report", [{}, {"sources": [], "train_rows": 3}])
def test_nothing_is_said_of_text_that_was_not_cleaned(report):
    text = history(head=head_with(report)).text
    assert cleaning_in_words(text) == ""
    assert cleaning_sections(text) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"documents": -1},
        {"kept": "many"},
        {"dropped": [{"rule": "x"}]},
        {"sets": [{}]},
        {"seconds": 1e99},
    ],
    ids=str,
)
def test_a_damaged_receipt_is_named_and_not_shown(damage):
    head = head_with(REPORT | {"cleaned": CLEANED | damage})
    with pytest.raises(Damaged, match=r"stages\.prepare\.result\.pretrain\.cleaned"):
        _ = history(head=head).text
    page = told(head=head)
    assert "stages.prepare.result" in page["summary"]["notes"][0]
    assert not any(section["title"] == "Cleaning" for section in page["measured"])


def test_a_source_without_a_name_is_still_shown():
    text = history(head=head_with({"cleaned": CLEANED})).text
    assert "a source, b.jsonl:7" in json.dumps(cleaning_sections(text))
