"""What a trainer needs of a checkpoint's state.json to continue.

A store may hold what others wrote, so the types are checked before the trainer uses the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from typing_extensions import TypedDict

from pipeline.state.record_json import Count, build, open_record


class _Optimizer(TypedDict):
    steps: Count
    groups: NotRequired[dict[str, Count]]


class _Plan(TypedDict):
    device: NotRequired[str]
    dtype: NotRequired[str]
    micro_batch: NotRequired[Count]
    world_size: NotRequired[Count]
    recompute: NotRequired[bool]
    compile: NotRequired[bool]
    threads: NotRequired[Count | None]
    deterministic: NotRequired[bool]


@open_record
class _State(TypedDict):
    step: Count
    next_row: Count
    skipped: list[Annotated[list[Count], Len(2, 2)]]
    recent_losses: NotRequired[list[float]]
    optimizer: _Optimizer
    rng: Mapping[str, str]
    plan: _Plan


def check_saved_state(state: Mapping[str, Any], where: str) -> None:
    """Raise `Damaged` if a trainer can't continue from `state`, the content of the file `where`."""
    build(_State, state, where)
