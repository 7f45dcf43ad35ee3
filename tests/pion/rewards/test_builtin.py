"""The rewards that Pion brings, and which records they can't judge."""

import time
from functools import partial

import pytest

from pion.errors import BadInput
from pion.rewards.answered import Answered
from pion.rewards.builtin import exact, json_with, number, regex_reward, unjudgeable


def said(text, answer=None):
    return Answered(text, "", answer, {}, True, 1)


# Texts by their number.
NUMBERS = {
    "72": ["So 40 + 32 = 72.", "72.0 %", "72kg", "答案是72。", "٧٢", "**072**, x2", r"$72\%$"],
    "-7": ["from -5 to −7", "-$7.00", "#### -7", r"\(x = -7\)", "<answer> -7</answer>"],
    "5": ["a 5", "#### 7\n####5 apples, 3", r"####5 \boxed{4} 3", r"\boxed{4} \boxed{ 5\% } 3"],
    "1234.5": ["$1,234.50 in all", r"\boxed{\$1,234.5}", r"\boxed{1234.5\text{ apples}} 2"],
    "0.5": ["costs .5", r"\boxed{.5 kg}", "5e-1", r"\textbf{0.5}", r"0.5^\circ"],
    "12": [r"12 \text{ m}^2", "12 m^2", r"\boxed{12\text{ m}^2}", "12 is a dozen"],
    "12000": [r"12,\!000", "12{,}000", r"12\,000.0", "12 000", "12\u202f000", "1.2e4", "12E+3"],
    "6.02e23": ["6.02e23.", "602" + "0" * 21, "it is 6.02E+23 a mole", r"\boxed{6.02e23}"],
    "0.00001": ["1e-05", "0.00001", "10e-6"],
}
NO_NUMBERS = [
    *("", "no", "a 3/4", "10^6", "at 12:30", "1,2,3", "3,5", "1.2.3", "v2", "5 ####", "5 #### ?"),
    *(r"5 \boxed{\frac{1}{2}}", r"5 \boxed{2^{10}}", r"\boxed{3\sqrt{2}}", r"\boxed{1, 2}"),
    *(r"5 \boxed{", r"\boxed{5", r"5 \boxed{" + " " * 10**6 + "5}", "\ud800\0"),
    *(r"of 20 \frac{3}{4}", r"\frac34", r"7\sqrt{2}", r"#### 7\sqrt{2}", "#### 2 1/2", "√2", "2π"),
    *("3x^2 + 1", "x^2", "2(x+1)", "10-5", "3 / 4", "3+2i", "5x", "x > 5", r"6 \times 10^{23}"),
    *(r"6 \cdot 10", "6e5.2", "1e999999", r"\log 5", "2^{-5}"),
]


def test_the_number_of_an_answer_is_compared_with_that_of_the_record():
    for found, texts in NUMBERS.items():
        for text in texts:
            assert number(said(text, f"1 + 2\n#### {found}")) == number(said(text, found)) == 1, (
                text
            )
            assert number(said(text, f"1{found}")) == 0
    for text in NO_NUMBERS:
        assert number(said(text, "72")) == number(said("72", text)) == 0, text
        assert unjudgeable("number", text), text


HUGE = ["9" * 10**7, "1,1" * 10**6, "1." * 10**6, "-" * 10**6, r"\boxed{" * 10**6, "[" * 10**7]


@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:8])
def test_megabytes_are_judged_in_time(text):
    started = time.process_time()
    for reward in (number, exact, partial(json_with, ["a"])):
        assert reward(said(text, "72")) == 0
    assert time.process_time() - started < 5


def test_exact_and_json():
    assert [exact(said(text, "a b")) for text in (" a b\n", "a  b", "")] == [1, 0, 0]
    texts = ['{"a": 1, "b": [], "c": 0}', ' {"a": null, "b": {}}\n', '{"a": 1}', '["a", "b"]']
    texts += ['It is {"a": 1, "b": 2}', '{"a": NaN, "b": 1}', ""]
    assert [json_with(["a", "b"], said(text)) for text in texts] == [1, 1, 0, 0, 0, 0, 0]
    assert [json_with([], said(text)) for text in texts] == [1, 1, 1, 1, 0, 0, 0]


def test_a_regular_expression_matches_the_whole_answer_and_may_not_take_for_ever(monkeypatch):
    monkeypatch.setattr("pion.rewards.builtin.REGEX_SECONDS", 0.2)
    monkeypatch.setattr("pion.rewards.function.PATIENCE", 3000.0)
    own = regex_reward("(a+)+'\"\\\\|\ud800é")
    texts = [" aa'\"\\ ", "\ud800é", "aab", "xé", "a" * 99]
    assert own.judge([said(text) for text in texts], 9) == [1, 1, 0, 0, 0]
    assert sum(own.errors.values()) == 1
    own.close()
    with pytest.raises(BadInput, match=r"the pattern '\(a' is not a regular expression of Python"):
        regex_reward("(a")


def test_records_that_a_reward_can_not_judge():
    reasons = [unjudgeable("exact", answer) for answer in (None, "", " \n")]
    assert set(reasons) == {"there is no answer to compare with (the reward exact)"}
    assert "no number to compare with (the reward number): 'two'" in unjudgeable("number", "two")
    for kind in ("number", "math", "exact"):
        assert "a text or a list of texts, not {'target': ['5']}" in unjudgeable(
            kind, {"target": ["5"]}
        )
    assert unjudgeable("number", ["no", "5"]) is None
    assert "no formula to compare with (the reward math): 'no'" in unjudgeable("math", "no")
    assert unjudgeable("math", ["no", r"\frac{1}{2}"]) is None
    fine = [("number", "#### 72"), ("exact", "two"), ("regex", None)]
    assert [unjudgeable(*one) for one in fine] == [None] * 3
