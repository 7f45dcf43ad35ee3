"""The card and the summary say what rewards changed, and whether the model has learned anything."""

import pytest

from pion.evaluation.item_scores import with_errors
from pipeline.report.blocks import Table
from pipeline.report.rewards import ROWS, reward_blocks, rewards_in_brief

SIDE = {name: (0.5, 0.1) for *_, name in ROWS}


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
