"""Several rewards together."""

from pion.rewards.answered import Answered
from pion.rewards.builtin import BuiltinReward
from pion.rewards.judge import MOST_ERRORS, Judge


def judged(rewards, groups):
    made = [(BuiltinReward(name, lambda a, f=f: f(a.text)), w) for name, f, w in rewards]
    judge = Judge(made)
    judge.close()
    said = ([Answered(*text, "", None, {}, end, 1) for *text, end in g] for g in groups)
    return judge.judge([*said])


def test_a_reward_is_the_weighted_mean_and_nothing_without_an_end():
    rewards = [("length", len, 3.0), ("rude", lambda text: text == "no", -1.0)]
    found = judged(rewards, [[("no", True), ("yes", True)], [("no", False)], []])
    assert found.total == [[(3 * 2 - 1) / 2, 3 * 3 / 2], [0], []]
    assert found.by_name == {"length": [[2, 3], [2], []], "rude": [[1, 0], [1], []]}


def test_an_answer_without_an_end_is_worth_no_more_than_any_other_of_its_group():
    rewards = [("sign", lambda text: 1 if text == "right" else -1, 1.0)]
    ends = [("right", True), ("wrong", True)], [("right", True)], [("wrong", True)], []
    for own, worth in zip(ends, (-1, 0, -1, 0), strict=True):
        assert judged(rewards, [[*own, ("right", False)]]).total[0][-1] == worth
    assert judged(rewards, [[("right", True), ("wrong", False)]]).total == [[1, -1]]


def test_a_reward_may_fail_for_a_share_of_all_answers():
    class Heard(BuiltinReward):
        def judge(self, answers, most_errors):
            heard.append(most_errors)
            return [0.0] * len(answers)

    heard, answer = [], Answered("", "", None, {}, True, 1)
    Judge([(Heard("x", len), 1.0)]).judge([[answer] * 3, [answer] * 2])
    assert heard == [MOST_ERRORS * 5] * 2


def test_the_mean_of_ones_is_one_and_each_reward_has_a_name_of_its_own():
    weights = [0.1, 3.3, -1.1, 0.7, 1e-9]
    names = ["number", "f", "f", "f_2", "f"]
    found = judged([(n, lambda _: 1, w) for n, w in zip(names, weights)], [[("", True)]])
    assert found.total == [[1.0]]
    # 0.1 + 0.2 is not 0.3 in binary.
    tenths = [(n, lambda text, n=n: n in text, w) for n, w in zip("abc", (0.1, 0.2, 0.3))]
    ((one, other),) = judged(tenths, [[("ab", True), ("c", True)]]).total
    assert one == other
    assert list(found.by_name) == ["number", "f", "f_2", "f_2_2", "f_3"]
