"""The job file: the stage that learns from rewards, and the kinds of rewards.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pion.config.part_fields import FACTOR, SEQ_LEN
from pion.train.reinforce import WITHOUT_LOSS, Reinforcement
from pipeline.job.data_section import ConversationSource
from pipeline.job.section import (
    BATCH,
    STEPS,
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
    runtime,
    scheduled,
)
from pipeline.job.sft_and_lora_sections import Conversations


class Reward(Section):
    weight: float = identity(
        1.0,
        "how much the reward counts, relative to the other rewards. A negative weight punishes",
        le=FACTOR,
        ge=-FACTOR,
    )


class NumberReward(Reward):
    """1 if the answer's number is that of the record: after ####, in \\boxed{}, or the last one."""

    kind: Literal["number"]


class MathReward(Reward):
    """1 if the answer's formula has the value of the record's answer, as math-verify compares."""

    kind: Literal["math"]


class ExactReward(Reward):
    """1 if the answer is the record's answer, but for white space around it."""

    kind: Literal["exact"]


class RegexReward(Reward):
    """1 if a regular expression matches the whole answer."""

    kind: Literal["regex"]
    pattern: str = identity(..., "a regular expression of Python, as in re.fullmatch")


class JsonReward(Reward):
    """1 if the answer is a JSON object that has these keys."""

    kind: Literal["json"]
    keys: list[str] = identity([], "keys that the object must have; empty: any JSON will do")


class PythonReward(Reward):
    """What a function in a Python file of yours returns. It runs in its own process."""

    kind: Literal["python"]
    path: str = identity(..., "the file. It can import packages, but no files next to it")
    function: str = identity(..., "name of the function in the file (`pion help rewards`)")
    deterministic: bool = identity(
        True,
        "whether the function returns the same for the same answer. If false, a resumed run may "
        "end with other weights",
    )


RewardSection = Annotated[
    NumberReward | MathReward | ExactReward | RegexReward | JsonReward | PythonReward,
    Field(discriminator="kind"),
]


class Reinforce(Conversations):
    without_loss: ClassVar = WITHOUT_LOSS
    rates_of_lora: ClassVar = {"lr": 3e-5, "min_lr": 3e-6, "weight_decay": 0.0}
    rows_depend_on: ClassVar = ("data.held_out", "model.seq_len")

    sources: list[ConversationSource] = identity(
        ..., "where the prompts come from. What follows a prompt is not learned", min_length=1
    )
    rewards: list[RewardSection] = identity(
        ...,
        "what judges an answer: number, math, exact, {kind: regex, pattern: …}, {kind: json, "
        "keys: […]} or {kind: python, path: …, function: …}. The reward of an answer is their "
        "weighted mean, and the lowest of its prompt, at most 0, if the answer has no end",
        min_length=1,
    )
    answers: int = identity(8, "answers that are sampled to each prompt", ge=2, most=1024)
    max_tokens: int = identity(
        256,
        "most tokens of an answer; unset, with model.from: at most half of a row",
        gt=0,
        most=SEQ_LEN,
    )
    seq_len: int | None = identity(
        None,
        "tokens in a packed row; unset: the longer of data.seq_len and sft.seq_len",
        ge=8,
        most=SEQ_LEN,
    )
    scale: Literal["none", "std"] = identity(
        "none",
        "what the distance of a reward from the mean of its group is divided by. std: by the "
        "standard deviation of the group, as TRL does by default",
    )
    pass_at: float = runtime(
        1.0,
        "reports count an answer as right if its reward is at least this",
        ge=-FACTOR,
        le=FACTOR,
    )
    min_signal: float = runtime(
        0.02,
        "least share of the prompts whose answers get different rewards before the first step. "
        "With less there is nothing to learn from, and the stage stops; 0: learn anyway",
        ge=0,
        lt=1,
    )
    epochs: float | None = scheduled(
        None, "passes over the prompts; unset: 1, or as many as steps gives", gt=0, most=10_000
    )
    global_batch: int = identity(
        16, "prompts in one optimizer step, for any number of GPUs", gt=0, most=BATCH
    )
    lr: float = scheduled(3e-6, "peak learning rate", gt=0, most=FACTOR)
    min_lr: float = scheduled(3e-7, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "wsd", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    warmup_steps: int | None = scheduled(
        None, "steps of linear warm-up; unset: a tenth of the steps", ge=0, most=STEPS
    )
    weight_decay: float = scheduled(
        0.0, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    held_out: float = identity(0.02, "share of the prompts reserved for evaluation", gt=0, lt=0.5)

    @field_validator("rewards", mode="before", json_schema_input_type=list[str | RewardSection])
    @classmethod
    def _names(cls, rewards: Any) -> Any:
        if not isinstance(rewards, list):
            return rewards
        return [{"kind": one} if isinstance(one, str) else one for one in rewards]

    @model_validator(mode="after")
    def _is_whole(self) -> Reinforce:
        """Refuse what does not fit together; fill in what the job leaves open."""
        total = sum(reward.weight for reward in self.rewards)
        mistakes = {
            f"rewards: the weights add up to {total:g}. The sum must be above 0": total <= 0,
            "optimizer: rewards are learned with adamw; remove `optimizer`": (
                self.optimizer == "muon"
            ),
            "max_spike: the loss of this stage is minus the reward; remove `max_spike`": (
                self.max_spike is not None
            ),
            "phases: answers are sampled by the whole model; remove `top_k` and `rank`": any(
                phase.top_k or phase.rank for phase in self.phases
            ),
            "window_schedule: answers are sampled with the model's windows; remove it": (
                self.window_schedule != "constant"
            ),
        }
        refuse(self, mistakes_of(lambda: self.learning) + made(mistakes))
        if self.steps is None and self.epochs is None:
            self.epochs = 1.0
        return self

    def rows_of_step(self, seq_len: int) -> int:
        """Return the rows of so many tokens that are trained on in a step: a guess, by prompts that
        are as long as answers may be, and that answers share."""
        return -(-self.global_batch * (self.answers + 1) * self.max_tokens // seq_len)

    def row_length(self, text: int, conversations: int) -> int:
        """Return the tokens in a row, which has a prompt and its answers."""
        return self.seq_len or max(text, conversations)

    def misfits(self, seq_len: int, context: int) -> list[str]:
        """Return that a row has no room for a prompt, if so."""
        longest = min(seq_len, context)
        no_room = (
            "reinforce.max_tokens: answers of so many tokens leave no room for a prompt in "
            f"reinforce.seq_len ({seq_len:,}) and the model's context ({context:,}). Give less, "
            f"such as {longest // 4:,}"
        )
        return made({no_room: self.max_tokens >= longest})

    def defaults_from_base(self, seq_len: int) -> dict[str, Any]:
        """Return fields that the job leaves open, where the run starts from a trained model."""
        chosen = min(256, seq_len // 2)
        return {} if "max_tokens" in self.model_fields_set else {"max_tokens": chosen}

    @property
    def files(self) -> dict[str, str]:
        """The files with functions that judge answers, by the keys that name them."""
        return {
            f"reinforce.rewards.{number}.path": reward.path
            for number, reward in enumerate(self.rewards)
            if isinstance(reward, PythonReward)
        }

    @property
    def sampled(self) -> int:
        """How many answers are sampled to each prompt."""
        return self.answers

    @property
    def learning(self) -> Reinforcement:
        """How the stage learns."""
        return Reinforcement(self.answers, self.max_tokens, self.scale)
