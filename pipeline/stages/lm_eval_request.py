"""What the evaluate stage asks of the process that runs a task of lm-eval, as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# evaluate.lm_eval.chat of a job.
Chat = Literal["auto", True, False]
# The file in the folder `out` with the answer.
ANSWER = "answer.json"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How lm-eval runs its tasks. A path is a text, since it becomes JSON.

    Attributes:
        include_path: a folder of the user's own task definitions.
        limit: the number of questions of each task; None for all.
        device: cpu or cuda.
        chat: which tasks are asked in the model's chat format: `evaluate.lm_eval.chat`.
        tuned: whether the model was trained on conversations.
        tokenizer: the tokenizer.json next to the chat format that the model learned; "": that of
            the exported model.
    """

    include_path: str | None = None
    limit: int | None = None
    device: str = "cpu"
    chat: Chat = "auto"
    tuned: bool = False
    tokenizer: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskRequest(TaskOptions):
    """One task, and how it is run.

    Attributes:
        task: a task or a group of tasks, by lm-eval's name.
        model: the exported model's folder.
        trusted: whether the modelling files in this folder are run. They are Pion's own.
        batch_size: rows at once.
        out: the folder for the answer.
    """

    task: str
    model: str
    trusted: bool
    batch_size: int
    out: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TaskRequest:
        return cls(**json.loads(text))

    @property
    def answer(self) -> Path:
        """The path of the answer: {"result": …, "items": …}."""
        return Path(self.out) / ANSWER
