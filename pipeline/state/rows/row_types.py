"""The rows of metrics and events that Pion can read, and how a line becomes one.

A store may hold what others wrote. The types below list what readers rely on: a row of another type
is unreadable and skipped. Rows may have more keys.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from annotated_types import Ge, Len, Lt, MaxLen
from typing_extensions import TypedDict

from pion.errors import BadInput
from pion.untrusted import parse_object
from pipeline.console.formats import counted
from pipeline.machine.rented import AT_HOME, END, RENTED
from pipeline.state.record_json import Amount, Count, Epoch, Number, Time, open_record

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Row = dict[str, Any]

# The most bytes of a line, and of a file of lines.
LARGEST_LINE = 4 << 20
LARGEST_SEGMENT = 256 << 20

# The most characters of the message with which a `pion run` ended.
LONGEST_MESSAGE = 2000

# A difference of two clocks may be negative.
Seconds = Annotated[float, Ge(-1e10), Lt(1e10)]
Speed = Annotated[float, Ge(0), Lt(1e18)] | None


@dataclass
class Unreadable:
    """Rows of metrics and events that were skipped: their number, and the file of the first.

    A file that can't be read counts as one row. `files` is how many of the rows are such files.
    """

    count: int = 0
    first: str = ""
    files: int = 0

    def add(self, where: str) -> None:
        """Count a row in the file `where`."""
        self.first = self.first or where
        self.count += 1

    def add_file(self, where: str) -> None:
        """Count a file of which no row can be read."""
        self.add(where)
        self.files += 1

    def describe(self) -> str | None:
        """Return a sentence about the skipped rows; None if there are none."""
        if self.count == 0:
            return None
        return (
            f"{counted(self.count, 'row')} of metrics and events could not be read. The first is "
            f"in {self.first}."
            + (f" Of {counted(self.files, 'file')}, all rows are missing." if self.files else "")
        )


def metrics_row(line: bytes) -> Row | None:
    """Return the row of metrics in a line of JSON; None if the line is not one."""
    return _row(line, lambda row: _Metrics)


def event_row(line: bytes) -> Row | None:
    """Return the event in a line of JSON; None if the line is not one."""
    return _row(line, lambda row: _EVENTS.get(str(row.get("event")), _Event))


def _row(line: bytes, kind_of: Any) -> Row | None:
    from pydantic import ValidationError

    if len(line) > LARGEST_LINE:
        return None
    try:
        row = parse_object(line, "the line")
        checked: Row = _adapter(kind_of(row)).validate_python(row)
    except (BadInput, ValidationError):
        return None
    return checked


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# ---------------------------------------------------------------- metrics


class _Sample(TypedDict):
    prompt: str
    text: str


class _Warning(TypedDict):
    name: str
    text: str


class _StandsFor(TypedDict):
    steps: Annotated[int, Ge(0), Lt(2**31)]
    from_step: Count
    row_seconds: Annotated[float, Ge(0), Lt(1e15)] | None


# What is measured at a step. `pass` is no name in Python, so the class has this form.
_Measures = TypedDict(
    "_Measures",
    {
        "loss": NotRequired[Number],
        "lr": NotRequired[Number],
        "grad_norm": NotRequired[Number],
        "held_out_loss": NotRequired[Number],
        # Of preferences; see METRICS in pion/train/preference_losses.py.
        "accuracy": NotRequired[Number],
        "margin": NotRequired[Number],
        "saturated": NotRequired[Number],
        "chosen": NotRequired[Number],
        "rejected": NotRequired[Number],
        "chosen_nll": NotRequired[Number],
        "drift": NotRequired[Number],
        "pairs": NotRequired[Number],
        "moved": NotRequired[Number],
        "held_out_accuracy": NotRequired[Number],
        "held_out_margin": NotRequired[Number],
        # Of rewards; see Groups.measures in pion/train/rollout_feed.py.
        "reward": NotRequired[Number],
        "signal": NotRequired[Number],
        "unfinished": NotRequired[Number],
        "answer_tokens": NotRequired[Number],
        "entropy": NotRequired[Number],
        "mismatch": NotRequired[Number],
        "judge_seconds": NotRequired[Number],
        "held_out_reward": NotRequired[Number],
        "pass": NotRequired[Number],
        "held_out_pass": NotRequired[Number],
    },
)


_SourceName = Annotated[str, MaxLen(100)]


@open_record
class _Metrics(_Measures):
    step: Count
    epoch: Epoch
    at: Time
    held_out: NotRequired[Mapping[_SourceName, Number]]  # the loss on each source of a mix
    tokens_per_second: NotRequired[Speed]
    rows: NotRequired[Annotated[list[Count], Len(2, 2)]]
    expert_load: NotRequired[list[Number]]
    router_entropy: NotRequired[list[Number]]
    recipe_entropy: NotRequired[list[Number]]
    primitives_used: NotRequired[list[Number]]
    gate_loss: NotRequired[list[Number]]
    sample: NotRequired[_Sample]
    warning: NotRequired[_Warning]
    stands_for: NotRequired[_StandsFor]


# ---------------------------------------------------------------- events


@open_record
class _Event(TypedDict):
    event: str
    epoch: Epoch
    at: Time


class _Claimed(_Event):
    price: NotRequired[Amount | None]
    session: NotRequired[str | None]
    started_at: NotRequired[Time | None]
    reason: NotRequired[str | None]


@open_record
class _AtHome(_Claimed):
    host: str


@open_record
class _Rented(_Claimed):
    id: str
    host: NotRequired[str | None]
    cloud: NotRequired[str | None]
    region: NotRequired[str | None]
    cluster: NotRequired[str | None]
    gpu: NotRequired[str | None]
    count: NotRequired[Count | None]
    nodes: NotRequired[Count | None]
    spot: NotRequired[bool | None]
    rented_at: NotRequired[Time | None]
    managed_job: NotRequired[str | None]
    phases: NotRequired[Mapping[str, Seconds] | None]


class LostMachine(TypedDict):
    """A machine that ended, or whose job ended, before it owned the run.

    The watching command saw it billing from `begin` to `end` (Unix seconds). `price` is in dollars
    per hour.
    """

    id: str
    cloud: str | None
    gpu: str | None
    count: Count
    price: Amount | None
    managed_job: str | None
    begin: Time
    end: Time


@open_record
class _Lost(_Event, LostMachine):
    """The event of such a machine."""


@open_record
class _Phase(_Event):
    name: str
    seconds: Seconds
    total: NotRequired[bool]
    parts: NotRequired[Mapping[str, Seconds]]


@open_record
class _Training(_Event):
    stage: str
    from_step: NotRequired[Count]
    host: NotRequired[str]
    device: NotRequired[str]
    workers: NotRequired[Count]
    micro_batch: NotRequired[Count]
    grad_accum: NotRequired[Count]
    recompute: NotRequired[bool]
    compile: NotRequired[bool]
    combo_kernels: NotRequired[bool]
    flex_attention: NotRequired[bool]
    sharded: NotRequired[bool]
    residual: NotRequired[str]
    torch: NotRequired[str]
    seq_len: NotRequired[Count]
    global_batch: NotRequired[Count]
    lr: NotRequired[Number]
    next_row: NotRequired[Count]


@open_record
class _Saved(_Event):
    stall: Seconds | None
    write: Seconds | None


@open_record
class _Plan(TypedDict):
    micro_batch: Count
    grad_accum: Count
    recompute: bool
    compile: bool
    combo_kernels: NotRequired[bool]
    flex_attention: NotRequired[bool]
    sharded: NotRequired[bool]


@open_record
class _Hop(_Event):
    receipt: list[str]
    plan: NotRequired[_Plan]


@open_record
class _Changed(_Event):
    changes: list[str]


@open_record
class _Watch(_Event):
    what: str
    why: str
    done: list[str]


@open_record
class _End(_Event):
    code: Annotated[int, Ge(0), Lt(256)]
    message: Annotated[str, MaxLen(LONGEST_MESSAGE)]
    stage: NotRequired[str]
    step: NotRequired[Count]


# `from` is a word of Python, so this can't be a class.
_Forked = TypedDict(
    "_Forked",
    {"event": str, "epoch": Epoch, "at": Time, "from": str, "stage": str, "at_step": Count},
)


_EVENTS: Mapping[str, type[Any]] = {
    AT_HOME: _AtHome,
    RENTED: _Rented,
    "lost": _Lost,
    "phase": _Phase,
    "training": _Training,
    "saved": _Saved,
    "hop": _Hop,
    "changed": _Changed,
    "watch": _Watch,
    END: _End,
    "forked": open_record(_Forked),
}
