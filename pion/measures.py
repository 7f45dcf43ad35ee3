"""What is measured of a model: each number of a record, by its name, and how it is written.

A measurement gives records: plain mappings from these names to numbers. A number with a standard
error has it next to itself, as `loss_sem` (`item_scores.with_errors`). A number that is not finite
is null in a stored record. Losses are in nats, and shares are from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from pion.config.part_fields import Measure


def _count(title: str) -> Measure:
    return Measure(title, "count", error=False)


# How well a model predicts text. Bits per byte can be compared between tokenizers; the bytes are
# those of the target tokens' text. A loss is a mean over target tokens.
HELD_OUT = {
    "loss": Measure("loss (nats per token)"),
    "perplexity": Measure("perplexity", 1, error=False),
    "bits_per_byte": Measure("bits per byte"),
    "tokens": _count("target tokens"),
    "bytes": _count("bytes"),
    "rows": _count("rows"),
}
# How well a model predicts the learned tokens of conversations, and whether its turns end.
RESPONSES = {
    "response_loss": Measure("loss of responses (nats per token)"),
    # The share of ends of turns where end-of-text is the likeliest token, and of other tokens.
    "stop_accuracy": Measure("ends of responses predicted", "share"),
    "false_stop_rate": Measure("ends predicted elsewhere", "share", error=False),
    "ends": _count("ends of turns"),
    "others": _count("learned tokens that are no ends"),
}
# Of tokens whose likeliest id has a probability of about 70 % (66.7 % to 73.3 %).
NEAR_70 = {
    "confidence": Measure("mean probability", "share", error=False),
    "accuracy": Measure("right", "share"),
    "tokens": _count("target tokens"),
}
# How far a model's largest probability can be trusted.
CALIBRATION = {
    # The expected calibration error: the mean over target tokens of the distance between
    # `confidence` and `accuracy` of the token's bin, in 15 bins of equal width (Guo et al. 2017).
    # Chance alone makes it larger than 0, the more so the fewer tokens there are.
    "ece": Measure("ECE", "share"),
    "brier": Measure("Brier score"),  # the mean of (confidence − right)², where right is 0 or 1
    "confidence": Measure("mean probability", "share"),  # of the likeliest id
    "accuracy": Measure("right", "share"),  # of targets, those that are the likeliest id
    "tokens": _count("target tokens"),
}
# Questions with several choices. `chance` is the share that guessing has right.
CHOICES = {
    "accuracy": Measure("accuracy", "share"),
    "chance": Measure("chance", "share", error=False),
    "questions": _count("questions"),
}
# What the context beyond `data.seq_len` is worth; see pion/evaluation/long_context.py.
LONG_CONTEXT = {
    "short_loss": Measure("loss of the beginnings of rows (nats per token)"),
    "worth": Measure("bits per byte more", 4, difference=True),
    "tokens": _count("tokens"),
}
WORTH = {"bits": Measure("bits per byte more", 4, difference=True)}
SAVED = {"bits": Measure("bits saved")}
# How often the chosen answer of a pair is ahead.
AGREEMENT = {
    "accuracy": Measure("share of pairs that are right", "share"),
    "where_longer": Measure("where the chosen answer is longer", "share"),
    "where_shorter": Measure("where it is shorter", "share"),
    "length_bias": Measure("difference", "share", difference=True),
}
# How right it is to take the longer answer of a pair, and how many pairs have one.
RULES = {
    "longer_wins": Measure("the longer answer is better", "share"),
    "shorter_wins": Measure("the shorter answer is better", "share"),
    "longer": _count("pairs whose chosen answer is longer"),
    "shorter": _count("pairs whose chosen answer is shorter"),
}
# How much likelier a token of the answers of a side has become.
MOVED = {
    "chosen": Measure("chosen answers", difference=True),
    "rejected": Measure("rejected answers", difference=True),
}
# What answers of the likeliest tokens are like; see pion/evaluation/greedy_answers.py.
ANSWERS = {
    "tokens": Measure("tokens of an answer", 1),
    "stopped": Measure("answers that end by themselves", "share"),
    "distinct": Measure("different ones among the sequences of 4 tokens of an answer", "share"),
}
# What sampled answers are worth.
REWARDS = {
    "reward": Measure("mean reward"),
    "pass": Measure("right answers", "share"),
    "pass_any": Measure("prompts with a right answer among them", "share"),
    "unfinished": Measure("answers without an end", "share"),
    "answer_tokens": Measure("tokens of an answer", 1),
    "nats": Measure("nats per token of answers from before"),
}
# What a stage that tunes answers changes elsewhere.
ELSEWHERE = {
    "text_change": Measure("bits per byte", difference=True),
    "response_change": Measure("nats per token", difference=True),
}
# The checkpoint that was chosen for its held-out loss, and the last one.
CHECKPOINT = {
    "step": _count("step"),
    "held_out_loss": Measure("held-out loss", 4, error=False),
    "last_step": _count("last step"),
    "last_held_out_loss": Measure("held-out loss of the last step", 4, error=False),
}


def columns(measures: Mapping[str, Measure], *names: str) -> dict[str, Measure]:
    """Return the measures of these names, in this order."""
    return {name: measures[name] for name in names}
