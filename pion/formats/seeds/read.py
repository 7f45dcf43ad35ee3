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
from pion.formats.seeds.archive import Forbidden, check_archive
from pion.later_fields import shown


class Stub:
    """Replaces a config class of a seed. It only has attributes and runs no code."""


def _stub(qualified_name: str) -> type[Stub]:
    """Return a stub that the restricted unpickler takes for the class of that name."""
    module, _, name = qualified_name.rpartition(".")
    return type(name, (Stub,), {"__module__": module, "__qualname__": name})


# The restricted unpickler of torch.load compares these with the names in the file.
CONFIG_CLASSES = (
    "model.PionConfig",
    "model.TachyonConfig",
    *(
        f"pilon_r.core.config.{name}Config"
        for name in ("Model", "Primitive", "Band", "MoE", "Training", "SFT")
    ),
)
STUBS = tuple(map(_stub, CONFIG_CLASSES))

# Parts of the names of a PILON's tensors that are not read: each layer repeats the shared banks and
# has a causal mask, and tiered banks count how often their primitives were used.
NOT_READ = (".ffn.primitive_banks.", ".attention.causal_mask", ".usage_counts")
# The other tensors without real numbers: which primitives of a tiered bank are where.
WHOLE_NUMBERS = (".hot_indices", ".warm_indices")
# Names longer than any seed's are not read.
LONGEST_NAME = 200
# The tensors may together have this many times the bytes of the file: a tied weight, or the names
# of a compiled model, list a tensor again.
MOST_COPIES = 4


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
    checkpoint, size = _load(path)
    model = None
    if isinstance(checkpoint, dict):
        model = checkpoint.get("model", checkpoint.get("model_state_dict"))
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in model.items()
    ):
        raise BadInput(
            f"{path} is not a seed's checkpoint: it has no tensors under 'model' or "
            "'model_state_dict'"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.items():
        if any(mark in name for mark in NOT_READ):
            continue
        _check_tensor(path, name, tensor)
        plain = name.replace("_orig_mod.", "")
        if plain in tensors and not tensors[plain].equal(tensor):
            raise BadInput(f"{path}: {plain} and _orig_mod.{plain} differ; which one is right?")
        tensors[plain] = tensor
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > MOST_COPIES * size:
        raise BadInput(f"{path}: its tensors claim {needed:,} bytes, but the file has {size:,}")
    return SeedCheckpoint(tensors, _settings(path, checkpoint))


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Raise BadInput unless the tensor is an array of real numbers that are all in the file."""
    if len(name) > LONGEST_NAME or not name.isascii():
        raise BadInput(f"{path}: {shown(name)} is not the name of a seed's tensor")
    array = tensor.layout is torch.strided and tensor.device.type == "cpu"
    whole = name.endswith(WHOLE_NUMBERS) and tensor.dtype is torch.int64
    if not array or tensor.is_quantized or not (whole or tensor.is_floating_point()):
        raise BadInput(
            f"{path}: {name} is not an array of real numbers, but {tensor.dtype} on "
            f"{tensor.device.type}, {tensor.layout}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = tuple(tensor.shape)
        raise BadInput(f"{path}: {name} claims shape {shape}, more elements than the file has")


def _settings(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    config, hparams = checkpoint.get("config"), checkpoint.get("hparams")
    settings = _plain(config) if isinstance(config, Stub) else hparams
    if not isinstance(settings, dict):
        return None
    for name, value in settings.items():
        if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
            kind = type(value).__name__
            raise BadInput(f"{path}: the setting {shown(name)} is a {kind}, not a plain value")
    return settings


def _plain(value: Any) -> Any:
    """Return a stand-in as a dict of its attributes, in lists too."""
    if isinstance(value, Stub):
        return {name: _plain(attribute) for name, attribute in vars(value).items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _load(path: Path) -> tuple[Any, int]:
    """Return the content of the file, its tensors mapped from the file, and the file's size."""
    try:
        size = check_archive(path, frozenset(CONFIG_CLASSES))
        with torch.serialization.safe_globals(list(STUBS)):
            # A mapped tensor is a part of the file, so it can't claim memory beyond the file.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), size
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"can't read {path}: {error.strerror or error}") from None
    except (Forbidden, pickle.UnpicklingError) as error:
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
    """Return the cause, without torch's advice to run the file."""
    if isinstance(error, Forbidden):
        return f"it asks for {shown(str(error))}"
    global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for {global_name[1]}" if global_name else type(error).__name__
