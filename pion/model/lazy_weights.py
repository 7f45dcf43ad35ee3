"""Random first weights of a model that is never in memory as a whole.

The model has the bits that `Decoder(config)` draws, because its modules are drawn in the same order
from the same random numbers. But a module is drawn only when its weights are read, and forgotten
when another one is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from pion.model.parameters import draw_module


class LazyWeights:
    """The random weights of a decoder, by their names in the state dict.

    `decoder` has these parameters on the device `meta`. It stays as it is. The random state is that
    from which the first module is drawn.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._config = decoder.config
        self._modules = dict(copy.deepcopy(decoder).named_modules())
        self._shapes = {n: p.shape for n, p in decoder.named_parameters() if p.is_meta}
        # The random state before each module that was drawn, and before the next one.
        self._states = [torch.get_rng_state()]
        self._drawn: tuple[str, dict[str, Tensor]] | None = None

    def layout(self) -> Mapping[str, tuple[torch.Size, torch.dtype]]:
        """Return the shape and the dtype of each tensor, by name, in the order of drawing."""
        return {name: (shape, torch.float32) for name, shape in self._shapes.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a flattened tensor."""
        path, _, parameter = name.rpartition(".")
        if self._drawn is None or self._drawn[0] != path:
            self._drawn = None  # its memory is needed
            self._drawn = path, self._draw_until(path)
        return self._drawn[1][parameter].view(-1)[start:stop]

    def _draw_until(self, path: str) -> dict[str, Tensor]:
        """Return the weights of a module. The modules before it are drawn once, and forgotten."""
        paths = list(self._modules)
        wanted = paths.index(path)
        drawn: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            for number in range(min(wanted, len(self._states) - 1), wanted + 1):
                torch.set_rng_state(self._states[number])
                drawn = self._draw(paths[number])
                if number + 1 == len(self._states):
                    self._states.append(torch.get_rng_state())
        return drawn

    def _draw(self, path: str) -> dict[str, Tensor]:
        module, config = self._modules[path], self._config
        without = {n: p for n, p in module.named_parameters(recurse=False) if p.is_meta}
        for name, param in without.items():
            module.register_parameter(name, nn.Parameter(torch.empty(param.shape)))
        draw_module(path, module, config.init, config.init_std, config.tie_embeddings)
        drawn = {name: module.get_parameter(name).detach() for name in without}
        for name, param in without.items():
            module.register_parameter(name, param)
        return drawn


def lazily_drawn(config: ModelConfig) -> tuple[Decoder, LazyWeights]:
    """Return a decoder whose random weights are on the device `meta`, and what draws them.

    What is not random has its values. Seed torch's random numbers before, as for `Decoder(config)`.
    """
    with _WithoutMemory():
        decoder = Decoder(config)
    return decoder, LazyWeights(decoder)


class _WithoutMemory(TorchDispatchMode):
    """Gives tensors without values no memory, and still takes the random numbers for them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            return func(*args, **{**kwargs, "device": torch.device("meta")})
        if func is torch.ops.aten.uniform_.default and args[0].is_meta:
            # nn.Linear draws when it is made, before `draw_weights`.
            func(torch.empty(args[0].shape), *args[1:], **kwargs)
            return args[0]
        return func(*args, **kwargs)
