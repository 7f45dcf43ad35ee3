"""Pretend that this machine has one CUDA card, for code that runs in this process.

Tensors on the card are torch's fake tensors: they have a shape, a dtype and a device, but no
memory. Tensors on the host are real. The process needs the library of cuda_shim.c, preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.cuda_rehearsal.watch import Watch


@dataclass(frozen=True)
class CardModel:
    """What the library asks about a card, besides its name."""

    capability: tuple[int, int]
    gib: int  # memory
    name: str | None = None  # what the driver says, if it is not "NVIDIA" and the name here


CARDS = {
    "A100": CardModel((8, 0), gib=80),
    "A40": CardModel((8, 6), gib=45),
    "H100": CardModel((9, 0), gib=80),
    "RTX 5090": CardModel((12, 0), gib=32),
    "T4": CardModel((7, 5), gib=15, name="Tesla T4"),
    "RTX 2060": CardModel((7, 5), gib=6),
    "A100 slice": CardModel((8, 0), gib=10, name="NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
}

# What `torch.cuda.get_device_properties` says. `insert_card` fills it in.
CARD = SimpleNamespace()

# Torch's device guard that does nothing guards this many cards. After a backward pass, the autograd
# engine asks about each of them.
GUARD_CARDS = 64


class PretendedStream:
    """A stream or an event. Nothing runs on it, but waiting for it is a finding."""

    stream_id, device_index, device_type = 0, 0, 1  # FSDP2 gives these to an operation

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def synchronize(self) -> None:
        self._watch.note("host_sync", "torch.cuda stream or event synchronize")

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or self

    def record(self, stream: Any = None) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass

    wait_stream = wait_event = wait


class PretendedDevice(contextlib.nullcontext[None]):
    """What `with torch.cuda.device(…)` enters. Torch asks whether a device is one of this class."""


class PretendedGraph:
    """A CUDA graph. What runs while it is captured is computed on fake tensors, as always."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def capture_begin(self, *pool: Any, **how: Any) -> None:
        self._watch.captures = True

    def capture_end(self) -> None:
        self._watch.captures = False

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        self._watch.replays += 1


def _answers(watch: Watch) -> dict[str, Any]:
    """Return what replaces the functions of torch.cuda, by name."""
    stream = PretendedStream(watch)

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    def synchronize(device: Any = None) -> None:
        watch.note("host_sync", "torch.cuda.synchronize")

    return {
        "is_available": always(True),
        "is_initialized": always(False),
        "device_count": always(1),
        "current_device": always(0),
        "set_device": always(None),
        "get_device_properties": always(CARD),
        "get_device_name": lambda device=None: CARD.name,
        "get_device_capability": lambda device=None: (CARD.major, CARD.minor),
        "is_bf16_supported": lambda including_emulation=True: including_emulation or CARD.major > 7,
        "synchronize": synchronize,
        "current_stream": always(stream),
        "default_stream": always(stream),
        "Stream": always(stream),
        "Event": always(stream),
        "stream": lambda stream: contextlib.nullcontext(),
        "device": PretendedDevice,
        "CUDAGraph": lambda: PretendedGraph(watch),
        "is_current_stream_capturing": lambda: watch.captures,
        "cudart": always(
            SimpleNamespace(
                cudaHostRegister=lambda *memory: watch.register(*memory),
                cudaHostUnregister=lambda address: watch.unregister(address),
            )
        ),
        "max_memory_allocated": always(0),
        "memory_allocated": always(0),
        "memory_reserved": always(0),
        "mem_get_info": lambda device=None: (CARD.total_memory, CARD.total_memory),
        "empty_cache": always(None),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": always(None),
    }


@contextlib.contextmanager
def pretended_card() -> Iterator[Watch]:
    """Pretend an A40 inside the `with` block; yield the watch that collects the findings.

    Only one such block may run in a process. Raises RuntimeError if cuda_shim.c is not preloaded.
    """
    insert_card("A40")
    watch = Watch()
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        # Fake tensors stay away from the driver only if there is no card. Here there never is one.
        replace(FakeTensorMode, "avoid_device_init", property(lambda self: True))
        for name, answer in _answers(watch).items():
            replace(torch.cuda, name, answer)
        replace(Tensor, "pin_memory", lambda self, device=None: watch.page_locked(self))
        replace(Tensor, "is_pinned", lambda self, device=None: watch.is_page_locked(self))
        replace(Tensor, "record_stream", lambda self, stream: None)
        # Theirs reads one element after the other. A real tensor is copied as a whole.
        replace(FakeTensor, "tolist", lambda self: self.cpu().tolist())
        _let_modules_move(stack)
        # The backward pass would run in the card's own thread, which does not see our modes.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        with FakeTensorMode():  # the first one installs the device guard that does nothing
            _shim_variable("announced_cards").value = GUARD_CARDS
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(watch)
        yield watch


def insert_card(name: str) -> None:
    """Make the pretended card the one of this name in CARDS."""
    model = CARDS[name]
    CARD.name = model.name or f"NVIDIA {name}"
    CARD.major, CARD.minor = model.capability
    CARD.total_memory = model.gib * 2**30
    _shim_variable("card_major").value = CARD.major
    _shim_variable("card_minor").value = CARD.minor


def _shim_variable(name: str) -> ctypes.c_int:
    """Return the shim's variable of this name. Raises RuntimeError if there is no shim."""
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(None), name)
    except ValueError:
        raise RuntimeError("start this program with cuda_shim.c in LD_PRELOAD") from None


def _let_modules_move(stack: contextlib.ExitStack) -> None:
    """Let `Module.to` replace parameters, because a real one can't become fake in place."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
