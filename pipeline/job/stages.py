"""The names of a run's stages, in order, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput


@dataclass(frozen=True)
class Words:
    """What people read of a training stage.

    Attributes:
        training: what it does.
        after: what its model is called.
        record: what it learns from: one of them.
        records: several of them.
    """

    training: str
    after: str
    record: str
    records: str


WORDS = {
    "pretrain": Words("pretraining", "pretrained", "document", "documents"),
    "sft": Words("fine-tuning", "fine-tuned", "conversation", "conversations"),
    "prefer": Words("preference tuning", "preference-tuned", "preference", "preferences"),
    "reinforce": Words("reward tuning", "reward-tuned", "prompt", "prompts"),
}
# These train. Each starts from the model of the one before it.
TRAINING = tuple(WORDS)
# These train on conversations, so what they leave can be talked to.
CONVERSING = TRAINING[1:]
STAGES = ("prepare", *TRAINING, "evaluate", "publish")


def data_key(part: str) -> str:
    """Return the section with the sources of a part of the data, which has the name of the stage
    that learns from it."""
    return "data" if part == "pretrain" else part


def stages_until(stages: Sequence[str], until: str | None) -> Sequence[str]:
    """Return the stages up to and with `until`; None: all."""
    return stages if until is None else stages[: stages.index(until) + 1]


def check_until(stages: Sequence[str], until: str | None, redo: str | None) -> None:
    """Raise BadInput if --until names a stage that a job of `stages` does not have, or one before
    --redo."""
    if until is None:
        return
    if until not in stages:
        raise BadInput(
            f"--until {until}: this job has no such stage. Its stages: {', '.join(stages)}. "
            "Nothing was started."
        )
    if redo in stages and STAGES.index(redo) > STAGES.index(until):
        raise BadInput(
            f"--until {until}: --redo {redo} is a later stage. Nothing was started. Give --until "
            f"{redo}, or leave it out."
        )
