"""The card, the page and the summary say what a draft block saves, and what it is."""

from pion.config.draft import Draft
from pipeline.report.part_results import part_blocks, part_in_brief
from tests.pipeline.report.test_model_card import card_and_page

GREEDY = {"texts": 16, "tokens_per_pass": 1.71, "tokens_per_pass_sem": 0.042, "right": 0.631}
DRAWN = {"texts": 16, "tokens_per_pass": 1.38, "tokens_per_pass_sem": None, "right": None}
DRAFTS = {"greedy": GREEDY, "drawn": DRAWN}
RESULTS = {"pretrain": {"loss": 3.0, "drafts": DRAFTS}}


def test_each_way_to_draw_has_a_row():
    _, table = part_blocks(RESULTS)
    assert table.rows == [
        ("base", "the likeliest", "1.71 ± 0.04", "63.1 %"),
        ("base", "drawn at a temperature of 0.8", "1.38", "–"),
    ]
    assert part_blocks({"pretrain": {"drafts": {}}, "sft": {}}) == []


def test_card_and_page_say_what_drafts_are():
    card, page = card_and_page(RESULTS)
    assert "| base | the likeliest | 1.71 ± 0.04 | 63.1 % |" in card
    for text in (card, page):
        assert "in one pass. This makes texts faster and never changes them." in text
        assert "1.71 ± 0.04" in text


def test_the_summary_has_the_texts_that_are_drawn_as_usual():
    said = [part_in_brief(Draft.result, found) for found in (DRAFTS, {"greedy": GREEDY})]
    assert said == [f"{n} tokens a pass (1 without drafts)" for n in ("1.38", "1.71 ± 0.04")]
