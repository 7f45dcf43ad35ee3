"""Read a seed's `.pt` file: tensors, plain values, and inert stand-ins for its config classes."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pion.errors import BadInput


class Stub:
    """Replaces a config class of a seed. It only has attributes and runs no code."""


def _stub(qualified_name: str) -> type[Stub]:
    """Return a stub that the restricted unpickler takes for the class of that name."""
    module, _, name = qualified_name.rpartition(".")
    return type(name, (Stub,), {"__module__": module, "__qualname__": name})


# The restricted unpickler of torch.load compares these with the names in the file.
STUBS = tuple(map(_stub, ("model.PionConfig", "model.TachyonConfig")))


@dataclass(frozen=True)
class SeedCheckpoint:
    """What a checkpoint has: its tensors by the seed's names, and the recorded settings.

    `settings` is None if the file has no config.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any] | None


def read_checkpoint(path: Path) -> SeedCheckpoint:
    """Return the content of a seed's checkpoint. Names from a compiled model also work.

    Raises BadInput for a file that is not such a checkpoint or has more than plain data.
    """
    checkpoint = _load(path)
    model = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in model.items()
    ):
        raise BadInput(f"{path} is not a seed's checkpoint: it has no tensors under 'model'")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.items():
        _check_tensor(path, name, tensor)
        plain = name.replace("_orig_mod.", "")
        if plain in tensors and not tensors[plain].equal(tensor):
            raise BadInput(f"{path}: {plain} and _orig_mod.{plain} differ; which one is right?")
        tensors[plain] = tensor
    return SeedCheckpoint(tensors, _settings(path, checkpoint))


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Raise BadInput unless the tensor is an array of real numbers that are all in the file."""
    array = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not array or not tensor.is_floating_point():
        raise BadInput(
            f"{path}: {name} is not an array of real numbers, but {tensor.dtype} on "
            f"{tensor.device.type}, {tensor.layout}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = tuple(tensor.shape)
        raise BadInput(f"{path}: {name} claims shape {shape}, more elements than the file has")


def _settings(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    config, hparams = checkpoint.get("config"), checkpoint.get("hparams")
    settings = dict(vars(config)) if isinstance(config, Stub) else hparams
    if not isinstance(settings, dict):
        return None
    for name, value in settings.items():
        if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
            kind = type(value).__name__
            raise BadInput(f"{path}: the setting {name} is a {kind}, not a plain value")
    return settings


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(STUBS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} is damaged, or it contains Python objects other than tensors and plain "
            "values. Pion did not load the file, because loading it could run code. "
            f"({_reason(error)})"
        ) from None
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise BadInput(
            f"{path} is not a PyTorch checkpoint, or is damaged ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    """Return the cause in torch's message, without torch's advice to run the file."""
    global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {global_name[1]}" if global_name else type(error).__name__
