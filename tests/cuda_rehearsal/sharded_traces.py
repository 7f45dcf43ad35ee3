"""Trace steps of one of several ranks that keep parts of a model, whose blocks are compiled.

Inductor's code runs on fake tensors (as_written.py), so that each buffer of a compiled block counts
as long as it is there. Ranks gather weights into storages that FSDP2 empties and fills again.

The pretended card has one stream. FSDP2 gathers and sums on others, and keeps what these read until
the computation waits for them: it calls no `record_stream`. So the same storages are alive on a
real card, also those of the next block, which is gathered ahead. But there, the memory that one
stream has freed is not used by another.

environment.py starts this program: `python -m tests.cuda_rehearsal.sharded_traces` with the name of
a preset of FAMILIES.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal
from unittest import mock

from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

from pion.config.lora import Lora
from tests.cuda_rehearsal.fake_group import fake_group
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.lowering import lowering
from tests.cuda_rehearsal.memory_traces import LINES, Peak, Trace, trace_peak
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back

# A preset of each family. Daisy and PILON name their layers, and can't have fewer.
FAMILIES: dict[str, dict[str, Any]] = {
    "pion-small": {"n_layers": 4},
    "pion2-small": {"n_layers": 4},
    "tachyon-tiny": {"n_layers": 4},
    "lepton-small": {"n_layers": 4},
    "daisy-pico": {},
    "pilon-48m": {},
}
RANKS = (4, 64)
# With few ids, blocks need more than the loss.
FEW = {"vocab_size": 4096}

Optimizer = Literal["adamw", "muon"]
_WAYS: tuple[tuple[Optimizer, dict[str, Any]], ...] = (("adamw", {}), ("adamw", FEW), ("muon", FEW))


# Of 4 ranks: LoRA, whose gradients are few; rows of several documents, and of answers; and the
# products of experts of an H100.
_OTHERS: dict[str, list[dict[str, Any]]] = {
    "pion-small": [
        {"lora": Lora()},
        {"lora": Lora(base_dtype="bfloat16"), "recompute": True},
        {"documents": True},
        {"documents": True, "sequences": 8},
    ],
    "tachyon-tiny": [
        {"card": "H100"},
        {"card": "H100", "lora": Lora(targets=("q_proj",))},
        {"documents": True},
    ],
}


def named(preset: str) -> list[Trace]:
    """Return the traces of this preset."""
    trace = partial(Trace, preset, 1, sharded=True, compiled=True)
    layers = FAMILIES[preset]
    usual = [
        trace(optimizer, ranks=ranks, recompute=recompute, changes=layers | changes)
        for ranks in RANKS
        for recompute in (False, True)
        for optimizer, changes in _WAYS
    ]
    others = [
        trace(ranks=RANKS[0], changes=layers | FEW, **ways) for ways in _OTHERS.get(preset, [])
    ]
    return usual + others


def main() -> None:
    peaks = []
    with pretended_card() as watch, lowering(as_written=True):
        live = LiveBytes(watch, explain=True)
        for trace in named(sys.argv[1]):
            with fake_group(trace.ranks), resizes_seen(live):
                trace_peak(watch, live, trace)
            largest = sorted(live.at_peak.items(), key=lambda item: -item[1])
            peaks.append((live.peak, dict(largest[:LINES])))
    hand_back(peaks)


@contextlib.contextmanager
def resizes_seen(live: LiveBytes) -> Iterator[None]:
    """Let `live` see when FSDP2 empties and fills the storages of gathered weights."""

    def seen(resize: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def then_count(tensor: Tensor) -> None:
            resize(tensor)
            live.resized(tensor)

        return then_count

    alloc, free = seen(_fsdp_param.alloc_storage), seen(_fsdp_param.free_storage)
    with (
        mock.patch.object(_fsdp_param, "alloc_storage", alloc),
        mock.patch.object(_fsdp_param_group, "alloc_storage", alloc),
        mock.patch.object(_fsdp_param, "free_storage", free),
    ):
        yield


def read_peaks(preset: str, output: str) -> dict[Trace, Peak]:
    """Return the peaks that the program printed for the traces of this preset."""
    peaks = [Peak(*peak) for peak in handed_back(output)]
    return dict(zip(named(preset), peaks, strict=True))


if __name__ == "__main__":
    main()
