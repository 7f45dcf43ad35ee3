"""Good rows of metrics and events, for the tests that attack them."""

import json
from typing import Any

from pipeline.cost.costs import LOST
from pipeline.machine.rented import RentedMachine, claim_event
from tests.hostile.hostile_run import NOW

METRICS: dict[str, Any] = {
    "step": 2,
    "epoch": 1,
    "at": NOW,
    "loss": 2.5,
    "lr": 1e-3,
    "held_out_loss": 2.5,
    "tokens_per_second": 1000.0,
    "rows": [4, 8],
    "expert_load": [1.5],
    "router_entropy": [0.9],
    "sample": {"prompt": "a", "text": "b"},
    "warning": {"name": "drift", "text": "a"},
}
MACHINE = RentedMachine(
    "pod",
    "RunPod",
    "CA",
    "CA-1",
    "cluster",
    "A40",
    2,
    1,
    True,
    "host",
    NOW - 60,
    "7",
    {"machine up": 30.0},
)
LOST_MACHINE = {"id": "gone", "cloud": "RunPod", "gpu": "A40", "count": 1, "price": 0.5}
LOST_MACHINE |= {"managed_job": "7", "begin": NOW, "end": NOW + 60}
CLAIM: dict[str, Any] = {"session": "s", "started": NOW - 60, "reason": "it was released"}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    found = {"event": kind, "epoch": 1, "at": NOW, **fields}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


EVENTS: dict[str, dict[str, Any]] = {
    "machine": event(**{"kind": "", **claim_event(MACHINE, 0.5, **CLAIM)}),
    "process": event(**{"kind": "", **claim_event(None, 0.5, **CLAIM)}),
    "lost": event(LOST, **LOST_MACHINE),
    "phase": event("phase", name="first step", seconds=2.5, total=True, parts={"a": 1.0}),
    "training": event(
        "training",
        **{"stage": "pretrain", "from_step": 1, "host": "host", "device": "A40", "python": "3.11"},
        **{"dtype": "float32", "workers": 1, "micro_batch": 4, "grad_accum": 1, "seq_len": 32},
        **{"global_batch": 4, "lr": 1e-3, "next_row": 4},
    ),
    "saved": event("saved", stage="pretrain", step=2, stall=0.5, write=1.5),
    "hop": event("hop", stage="pretrain", receipt=["hop: a → b"]),
    "changed": event("changed", changes=["torch 1 → 2"]),
    "forked": event("forked", **{"from": "x"}, stage="sft", at_step=5),
}
# The fields that no reader uses. They may be anything.
FREE = {
    "machine": {"zone", "session"},
    "process": {"session"},
    "training": {"python", "dtype"},
    "saved": {"stage", "step"},
    "hop": {"stage"},
}

ROWS = {"metrics": METRICS, **EVENTS}
