"""The states of torch's random number generators, as a checkpoint records them."""

from __future__ import annotations

import base64

import torch

from pion.errors import BadInput


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
