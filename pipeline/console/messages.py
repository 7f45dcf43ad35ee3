"""What the driver, its workers and the display say to each other.

Inside a process, messages are the objects below. Between processes they are lines of JSON, written
by `to_json` and read by `from_json`. Only workers/lifeline.py calls these two.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

# ---------------------------------------------------------------- what the display shows


@dataclass(frozen=True)
class Phase:
    """A part of the start-up is over, after `seconds`.

    `total` marks the end of the whole start-up. `parts` splits the seconds by name.
    """

    name: str
    seconds: float
    total: bool = False
    parts: Mapping[str, float] | None = None


@dataclass(frozen=True)
class PrepareProgress:
    """How much of `what` a stage has done, in `unit` (documents, MB, shards …): `prepare`, or what
    another one prepares before its first step. `eta` is in seconds, `dollars` is what the whole
    will have cost, and `detail` says more.
    """

    what: str
    done: float
    unit: str
    total: float | None = None
    stage: str = "prepare"
    eta: float | None = None
    detail: str = ""
    dollars: float | None = None


@dataclass(frozen=True)
class StageState:
    """The state of a stage: done, resume, todo, stale or started.

    `steps` is the length of a training stage that has started.
    """

    stage: str
    state: str
    why: str = ""
    steps: int | None = None


@dataclass(frozen=True)
class Step:
    """The newest training step, once per log interval.

    `memory` is in bytes, `eta` in seconds. `dollars` is what the run has cost so far,
    `dollars_per_hour` the price of this machine. `accuracy` is of preferences and rewards, `margin`
    of preferences, and the others are of rewards: `judging` is in seconds for an answer.
    """

    stage: str
    step: int
    steps: int
    loss: float
    lr: float
    tokens_per_second: float
    grad_norm: float | None = None
    mfu: float | None = None
    memory: int | None = None
    eta: float | None = None
    dollars: float | None = None
    dollars_per_hour: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    reward: float | None = None
    signal: float | None = None
    judging: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out text after `step`, and its standard error.

    `accuracy` is the share of held-out preferences, or of answers, that are right; None for text.
    With `rewarded`, the loss is minus the reward of answers to held-out prompts.
    """

    stage: str
    step: int
    loss: float
    loss_sem: float
    accuracy: float | None = None
    rewarded: bool = False


@dataclass(frozen=True)
class Sample:
    """What the model writes after `prompt` at an evaluation."""

    stage: str
    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class CheckpointSaved:
    """The checkpoint of `step` is durable, the `saved`-th of this process.

    Training waited `stall` seconds. Copying took `copy` seconds, on a card next to a step. Writing
    took `write` seconds. `interval` is the number of seconds between saves, or None if the job
    counts steps.
    """

    stage: str
    step: int
    saved: int
    stall: float | None = None
    copy: float | None = None
    write: float | None = None
    interval: float | None = None


@dataclass(frozen=True)
class Note:
    """Anything else worth a line. `last`: the process ends as soon as the line is shown."""

    text: str
    last: bool = False


@dataclass(frozen=True)
class Summary:
    """The closing summary of a run, as [label, value] pairs: its model, card, report …"""

    rows: Sequence[Sequence[str]]


Shown = (
    Phase
    | PrepareProgress
    | StageState
    | Step
    | Evaluation
    | Sample
    | CheckpointSaved
    | Note
    | Summary
)
Say = Callable[[Shown], None]

# ---------------------------------------------------------------- between driver and workers


@dataclass(frozen=True)
class Hello:
    """A worker's first message: the token that it was given, and its rank."""

    token: str
    rank: int


@dataclass(frozen=True)
class WorkerStarted:
    """A worker has reached the training loop."""

    pid: int


@dataclass(frozen=True)
class Trained:
    """A worker's training has ended: `outcome` is done or stopped."""

    outcome: str


@dataclass(frozen=True)
class WorkerFailed:
    """A worker failed with an error that a restart would not fix.

    `error` is the error as pipeline/state/stores/errors.py writes it.
    """

    error: Mapping[str, Any]


@dataclass(frozen=True)
class MachineNotice:
    """A worker's machine will be taken in `seconds`, as `text` says."""

    text: str
    seconds: float


@dataclass(frozen=True)
class SaveAndStop:
    """The driver asks its workers to save the last finished step and to end."""


@dataclass(frozen=True)
class FitEnded:
    """The process that runs Ray Train ended by itself; `last_words` is its last line of output."""

    last_words: str


FromWorker = Shown | WorkerStarted | Trained | WorkerFailed | MachineNotice
Message = FromWorker | Hello | SaveAndStop

# ---------------------------------------------------------------- as JSON

_BY_NAME: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}


def to_json(message: Message) -> str:
    """Return the message as one line of JSON."""
    return json.dumps({"type": type(message).__name__} | dataclasses.asdict(message))


def from_json(line: str | bytes) -> Message:
    """Return the message that `to_json` wrote. Raises ValueError for anything else."""
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return from_fields(fields)


def from_fields(fields: Any) -> Message:
    """Return the message with these fields of JSON. Raises ValueError for anything else."""
    name = fields.pop("type", None) if isinstance(fields, dict) else None
    if not isinstance(name, str) or name not in _BY_NAME:
        raise ValueError(f"there is no message type {name!r}")
    try:
        message: Message = _BY_NAME[name](**fields)
    except TypeError as error:
        raise ValueError(f"not a message: {error}") from None
    return message
