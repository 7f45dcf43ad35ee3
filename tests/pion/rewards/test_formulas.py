"""The reward `math`: values are compared, and a formula without end costs one answer."""

from contextlib import closing

import pytest

from pion.rewards.answered import Answered
from pion.rewards.builtin import is_formula, math_reward

pytestmark = pytest.mark.slow

# A right answer, what has its value, and what has not.
CASES = [
    (r"\frac{3}{4}", [r"\boxed{\frac{3}{4}}", "It is 3/4.", r"so \tfrac34", "0.75"], ["It is 4."]),
    (r"7\sqrt{2}", [r"It is 7\sqrt{2}.", r"$\sqrt{98}$", "$7 \\sqrt 2$ m"], ["2", "7"]),
    (r"12 \text{ m}^2", [r"\boxed{12\text{ m}^2}", "It is 12."], ["It is 2.", r"\boxed{12^2}"]),
    (r"10,\!000", ["There are 10,000.", "10 000", "1e4"], ["There are 0.", "10"]),
    ("6.02e23", [r"$6.02 \times 10^{23}$", "6.02E+23 in a mole"], ["6.02", "6.02e5", "23"]),
    ("9.1e-31", [r"9.1 \cdot 10^{-31}", "9.1e-31"], [r"$9.1 \cdot 10^{-30}$", "0", "$0$"]),
    ("x = -3", ["-3", r"\(x=-3\)", "x = −3"], ["3", "$x=3$"]),
    ("1 + 2\n#### 72", [r"\boxed{\frac{144}{2}}", "#### 72", "It costs \\$72."], ["144"]),
    ("(x+1)^2", ["x^2+2x+1", "so $f = (1+x)^2$", r"\[x^2+2x+1\]"], ["(x-1)^2", "2", "1"]),
    ("x<3", ["$x<3$", "3 > x"], ["x>3", "3", "x<-3"]),
    ("1+i", ["i+1", "$1+i$"], ["1-i", "1"]),
    ("5!", ["120"], ["5"]),
    (r"\frac{1}{2}", ["50%", r"$50\%$", "½"], ["50", "x>5", "1/0", r"$\infty$"]),
    (r"$\frac{\sqrt{2}}{\pi}$", ["sqrt(2)/pi", "√2/π", "2**(1/2)/pi"], ["2/pi", "√3/π"]),
    ("2xy", ["2yx", r"\boxed{2 x y}"], ["2", "2x"]),
    ("(1,2)", ["(1,2)", r"$\left(1, 2\right)$"], ["(2,1)", "[1,2]"]),
    (r"\{1,2\}", [r"$\{2,1\}$", "1,2"], ["1,3"]),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", [r"$\begin{pmatrix}1\\2\end{pmatrix}$"], ["1", "2"]),
    (r"x \ge 3", [r"$[3,\infty)$"], ["3", r"$(3,\infty)$"]),
    (r"\text{even}", ["even", r"\boxed{\text{even}}"], ["odd"]),
    (["one half", r"\frac12", "5"], ["1/2", "5", "$0.5$"], ["2", "1"]),
]


def said(text, right):
    return Answered(text, "", right, {}, True, 1)


def test_values_of_formulas_are_compared_and_each_process_says_the_same():
    answers = [said(text, right) for right, same, other in CASES for text in same + other]
    with closing(math_reward(0)) as own, closing(math_reward(1)) as other:
        rewards = own.judge(answers, 0)
        assert other.judge(answers[::-1], 0)[::-1] == rewards
    expected = [n < len(same) for _, same, other in CASES for n in range(len(same + other))]
    wrong = [(a.answer, a.text) for a, r, e in zip(answers, rewards, expected) if r != e]
    assert wrong == []
    assert not own.errors
    assert not own.unjudged
    assert all(is_formula(right) for right, _, _ in CASES)
    assert not any(map(is_formula, ["one half", {"target": 5}, None, True, []]))


# Of huggingface/Math-Verify, issue 65, and a sum that sympy computes for minutes.
ENDLESS = [
    r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}",
    r"$\sum_{n=1}^{100000000} \frac{1}{n^3}$",
]


def test_formulas_without_end_get_0_and_other_answers_what_they_would_get(monkeypatch):
    monkeypatch.setattr("pion.rewards.builtin.MATH_SECONDS", 3.0)
    monkeypatch.setattr("pion.rewards.function.PATIENCE", 600.0)
    with closing(math_reward()) as own:
        texts = ["3", *ENDLESS, r"$\sqrt 9$"]
        assert own.judge([said(text, "3") for text in texts], 0) == [1, 0, 0, 1]
        ((why, count),) = own.unjudged.items()
        assert why.endswith("(it may compute for 3 s, and should not exit)")
        assert count == len(ENDLESS)
        assert not own.errors
        assert own.judge([said("3", "of course")], 0) == [0]
        assert "no formula in the right answer 'of course'" in next(iter(own.errors))
