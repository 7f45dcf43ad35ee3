"""The state of training: what a stage resumes from, and the random state of a process."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pion.errors import BadInput
from pion.train.optimizer.state_pieces import Piece
from pion.train.side_copy import SideCopy


@dataclass(frozen=True)
class TrainState:
    """Everything that a stage resumes from.

    The tensors are live: copy them before the next step changes them. What `side_copy` begins to
    copy before the next step is copied in time, and on a card next to this step. `model` has no
    parameters that needed no gradient when the trainer got them: whoever resumes brings them.
    `meta` is JSON: step, next_row, skipped, the recent losses that define a spike, optimizer
    counters, RNG states and the plan.

    Of a sharded model, each rank has `pieces` of the parameters and of the optimizer's tensors.
    These tensors have no values then (their device is `meta`), until whoever saves has copied the
    pieces of all ranks together. What is loaded is always whole.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    meta: dict[str, Any]
    side_copy: SideCopy = field(default_factory=SideCopy, compare=False)
    pieces: Sequence[Piece] = ()


def rng_states(device: torch.device) -> dict[str, str]:
    """Return the states of the CPU's generator and of a CUDA `device`'s, as base64."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()
    }


def set_rng_states(states: dict[str, str], device: torch.device) -> None:
    """Restore the states from `rng_states`, for the generators that this machine has.

    Raises BadInput if a state is not one.
    """
    for name, text in states.items():
        try:
            state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
            if name == "cpu":
                torch.set_rng_state(state)
            elif name == "cuda" and device.type == "cuda":
                torch.cuda.set_rng_state(state, device)
        except (ValueError, RuntimeError) as error:
            raise BadInput(f"the checkpoint's random state of {name} is damaged: {error}") from None
