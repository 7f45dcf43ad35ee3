"""What to tell people while a stage learns from rewards: nothing can be learned from these answers,
or the model learns something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import variance
from typing import Any

from pipeline.training.preference_advice import mean_of

# What a row of metrics needs to be judged. One from a store may lack numbers.
NEEDED = ("reward", "pass", "signal", "unfinished", "entropy", "mismatch", "answer_tokens")
# With fewer groups whose rewards differ, little is learned.
LEAST_SIGNAL = 0.05
# Answers that did not end get the lowest reward.
MOST_UNFINISHED = 0.25
# Of the entropy of the first steps: below this share, all answers to a prompt are alike.
LEAST_ENTROPY = 0.1
# In nats per token, between the model that samples and the same model in training.
MOST_MISMATCH = 0.05
# A reward that has not risen by its error from the first quarter of at least so many steps to the
# last is flat.
FLAT_STEPS = 50
# So much longer or shorter answers are another kind of answers.
LENGTHS = (0.5, 2.0)

Row = Mapping[str, Any]


def found(first: Sequence[Row], last: Sequence[Row]) -> dict[str, str]:
    """Return what is wrong with the last steps of a stage, by name."""
    begin, now = ({name: mean_of(rows, name) for name in NEEDED} for rows in (first, last))
    risen = now["reward"] - begin["reward"]
    # The first answers are those of the model from before.
    kept_ends = now["unfinished"] < 2 * first[0]["unfinished"] or now["reward"] > first[0]["reward"]
    said = {
        "signal": (
            now["signal"] < LEAST_SIGNAL,
            f"only {now['signal']:.1%} of the prompts get answers with different rewards, so "
            "little is learned. " + (ALL_RIGHT if now["pass"] > 0.5 else ALL_WRONG),
        ),
        "unfinished": (
            now["unfinished"] > MOST_UNFINISHED,
            f"{now['unfinished']:.0%} of the answers have no end, and get the lowest reward. "
            + (
                "Raise reinforce.max_tokens, or fine-tune on shorter answers first"
                if kept_ends
                else "The first had more ends and a better reward. Lower reinforce.lr"
            ),
        ),
        "entropy": (
            now["entropy"] < LEAST_ENTROPY * begin["entropy"],
            f"entropy of answers has fallen from {begin['entropy']:.3g} to {now['entropy']:.3g} "
            "nats per token: they are nearly the same. Lower reinforce.lr, or stop earlier",
        ),
        "mismatch": (
            now["mismatch"] > MOST_MISMATCH,
            f"the tokens of answers are {now['mismatch']:.3f} nats more or less likely in training "
            "than when they were sampled. With hardware.dtype=float32 they would be the same",
        ),
        "length": (
            risen > 0
            and not LENGTHS[0] < now["answer_tokens"] / begin["answer_tokens"] < LENGTHS[1],
            f"answers have {now['answer_tokens']:.0f} tokens and had {begin['answer_tokens']:.0f}, "
            "while the reward rises. Read them on the page: you may not want how they meet it",
        ),
    }
    return {name: words for name, (holds, words) in said.items() if holds}


def flat(first: Sequence[Row], last: Sequence[Row]) -> dict[str, str]:
    """Return whether the reward has not risen from the first quarter of steps to the last."""
    if last[-1]["step"] < FLAT_STEPS or min(len(first), len(last)) < 2:
        return {}
    begin, now = mean_of(first, "reward"), mean_of(last, "reward")
    of_both = ([row["reward"] for row in rows] for rows in (first, last))
    error = sum(variance(each) / len(each) for each in of_both) ** 0.5
    if now - begin >= error:
        return {}
    # At the end, the rate has fallen.
    peak = max(row["lr"] for row in (*first, *last))
    advice = f"Raise reinforce.lr to three times {peak:.2g}"
    words = (
        f"the reward has not risen: it was {begin:.3f} in the first quarter of the steps, and is "
        f"{now:.3f} in the last. {advice if now - begin > -error else 'Lower reinforce.lr'}"
    )
    return {"flat": words}


ALL_WRONG = (
    "Nearly all answers are wrong: raise reinforce.max_tokens if they have no end, fine-tune on "
    "such answers first (sft), give a reward for parts of an answer, use easier prompts, or raise "
    "reinforce.answers"
)
ALL_RIGHT = "Nearly all answers are right: use harder prompts, or stop here"
