"""The rows of metrics and events that Pion can read, and how a line becomes one.

A store may hold what others wrote. The types below list what readers rely on: a row of another type
is unreadable and skipped. Rows may have more keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, get_type_hints

from annotated_types import Ge, Len, Lt, MaxLen
from typing_extensions import TypedDict

from pion.errors import BadInput
from pion.untrusted import parse_object
from pipeline.console.formats import counted
from pipeline.machine.rented import AT_HOME, END, RENTED
from pipeline.state.record_json import Amount, Count, Epoch, Number, Time, open_record, record_type

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
    return _row(line, lambda row: _METRICS)


def event_row(line: bytes) -> Row | None:
    """Return the event in a line of JSON; None if the line is not one."""
    return _row(line, lambda row: _EVENTS.get(str(row.get("event")), _EVENT))


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


def _each(names: Iterable[str], kind: Any) -> dict[str, Any]:
    """Return fields of the same type."""
    return dict.fromkeys(names, kind)


_STANDS_FOR = record_type(
    steps=Annotated[int, Ge(0), Lt(2**31)],
    from_step=Count,
    row_seconds=Annotated[float, Ge(0), Lt(1e15)] | None,
)
# What is measured at a step.
_MEASURES = (
    *("loss", "lr", "grad_norm", "held_out_loss"),
    # Of preferences; see METRICS in pion/train/preference_losses.py.
    *("accuracy", "margin", "saturated", "chosen", "rejected", "chosen_nll", "drift", "pairs"),
    *("moved", "held_out_accuracy", "held_out_margin"),
    # Of rewards; see Groups.measures in pion/train/rollout_feed.py.
    *("reward", "signal", "unfinished", "answer_tokens", "entropy", "mismatch", "judge_seconds"),
    *("held_out_reward", "pass", "held_out_pass"),
)
# What is measured of each layer.
_OF_LAYERS = ("expert_load", "router_entropy", "recipe_entropy", "primitives_used", "gate_loss")
_SourceName = Annotated[str, MaxLen(100)]
_METRICS = open_record(
    record_type(
        step=Count,
        epoch=Epoch,
        at=Time,
        **_each(_MEASURES, NotRequired[Number]),
        **_each(_OF_LAYERS, NotRequired[list[Number]]),
        held_out=NotRequired[Mapping[_SourceName, Number]],  # the loss on each source of a mix
        tokens_per_second=NotRequired[Speed],
        rows=NotRequired[Annotated[list[Count], Len(2, 2)]],
        sample=NotRequired[record_type(prompt=str, text=str)],
        warning=NotRequired[record_type(name=str, text=str)],
        stands_for=NotRequired[_STANDS_FOR],
    )
)


# ---------------------------------------------------------------- events


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


def _event(**fields: Any) -> Any:
    """Return the type of an event with these fields."""
    return open_record(record_type(fields, event=str, epoch=Epoch, at=Time))


# What the events of both kinds of owners have.
_CLAIMED: dict[str, Any] = {
    "price": NotRequired[Amount | None],
    "session": NotRequired[str | None],
    "started_at": NotRequired[Time | None],
    "reason": NotRequired[str | None],
}
# What a machine computes with, as far as older events have it.
_WAYS = _each(("combo_kernels", "flex_attention", "sharded"), NotRequired[bool])
_PLAN = open_record(
    record_type(micro_batch=Count, grad_accum=Count, recompute=bool, compile=bool, **_WAYS)
)
_EVENT = _event()
_EVENTS: Mapping[str, type[Any]] = {
    AT_HOME: _event(**_CLAIMED, host=str),
    RENTED: _event(
        **_CLAIMED,
        id=str,
        host=NotRequired[str | None],
        cloud=NotRequired[str | None],
        region=NotRequired[str | None],
        cluster=NotRequired[str | None],
        gpu=NotRequired[str | None],
        count=NotRequired[Count | None],
        nodes=NotRequired[Count | None],
        spot=NotRequired[bool | None],
        rented_at=NotRequired[Time | None],
        managed_job=NotRequired[str | None],
        phases=NotRequired[Mapping[str, Seconds] | None],
    ),
    "lost": _event(**get_type_hints(LostMachine, include_extras=True)),
    "phase": _event(
        name=str,
        seconds=Seconds,
        total=NotRequired[bool],
        parts=NotRequired[Mapping[str, Seconds]],
    ),
    "training": _event(
        stage=str,
        from_step=NotRequired[Count],
        host=NotRequired[str],
        device=NotRequired[str],
        workers=NotRequired[Count],
        micro_batch=NotRequired[Count],
        grad_accum=NotRequired[Count],
        recompute=NotRequired[bool],
        compile=NotRequired[bool],
        **_WAYS,
        residual=NotRequired[str],
        torch=NotRequired[str],
        seq_len=NotRequired[Count],
        global_batch=NotRequired[Count],
        lr=NotRequired[Number],
        next_row=NotRequired[Count],
    ),
    "saved": _event(stall=Seconds | None, write=Seconds | None),
    "hop": _event(receipt=list[str], plan=NotRequired[_PLAN]),
    "changed": _event(changes=list[str]),
    "watch": _event(what=str, why=str, done=list[str]),
    END: _event(
        code=Annotated[int, Ge(0), Lt(256)],
        message=Annotated[str, MaxLen(LONGEST_MESSAGE)],
        stage=NotRequired[str],
        step=NotRequired[Count],
    ),
    "forked": _event(**{"from": str}, stage=str, at_step=Count),
}
