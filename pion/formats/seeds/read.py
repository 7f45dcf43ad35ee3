"""Read a seed's `.pt` file: tensors, plain values, and inert stand-ins for its config classes.

torch.save writes a zip archive in which nothing is compressed. A pickle in it refers to the
tensors, which are files of the archive. Before torch reads the file, the archive's sizes are
checked, and what its pickle asks for.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import open_file
from pion.untrusted_zip import DAMAGED, open_archive

# The most tensors that an archive may have, and the most bytes of its pickle. A tensor takes 300.
MOST_FILES, LARGEST_PICKLE = 1 << 15, 4 << 20

# What a pickle may ask for, besides the stand-ins for config classes. torch allows more,
# such as a bytearray of any size, or tensors without any data.
PLAIN = frozenset(
    (
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.device",
        *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
        *(f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
        *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64")),
    )
)

# A pickle begins with this byte, and older versions of PyTorch wrote only pickles.
_PICKLE = b"\x80"


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


State = dict[str, Tensor]


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
    entries = checkpoint if isinstance(checkpoint, dict) else {}
    model = entries.get("model", entries.get("model_state_dict"))
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
    is_integer = name.endswith(WHOLE_NUMBERS) and tensor.dtype is torch.int64
    if not array or tensor.is_quantized or not (is_integer or tensor.is_floating_point()):
        raise BadInput(
            f"{path}: {name} is not an array of real numbers, but {tensor.dtype} on "
            f"{tensor.device.type}, {tensor.layout}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadInput(
            f"{path}: {name} claims shape {tuple(tensor.shape)}, more elements than the file has"
        )


def _settings(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    config, hparams = checkpoint.get("config"), checkpoint.get("hparams")
    settings = _plain(config) if isinstance(config, Stub) else hparams
    if not isinstance(settings, dict):
        return None
    for name, value in settings.items():
        if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
            raise BadInput(
                f"{path}: the setting {shown(name)} is a {type(value).__name__}, not a plain value"
            )
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


class Forbidden(Exception):
    """A pickle asks for something else than tensors and plain values; the message is its name."""


def check_archive(path: Path, stand_ins: frozenset[str]) -> int:
    """Return the size of a `.pt` file in bytes, once torch can read it safely.

    Nothing in it is compressed, its files take no more bytes than it has, and its pickle asks only
    for tensors, plain values and the classes in `stand_ins`.

    Raises Forbidden for a pickle that asks for more, BadInput for any other file, and OSError.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(1) == _PICKLE:
            raise BadInput(
                f"{path} was saved by a PyTorch before 1.6. Pion does not read this format. If you "
                "trust the file, load it in Python and save it again with torch.save"
            )
        try:
            _check_files(path, file, size, stand_ins)
        except DAMAGED:
            raise BadInput(f"{path} is not a PyTorch checkpoint, or is damaged") from None
    return size


def _check_files(path: Path, file: BinaryIO, size: int, stand_ins: frozenset[str]) -> None:
    with open_archive(path, file, MOST_FILES) as archive:
        files = archive.infolist()
        packed = next(
            (entry for entry in files if entry.compress_type or entry.flag_bits & 1), None
        )
        if packed is not None:
            raise BadInput(
                f"{path}: {shown(packed.filename)} in it is compressed or encrypted. torch.save "
                "does not do that"
            )
        if sum(max(entry.file_size, entry.compress_size) for entry in files) > size:
            raise BadInput(f"{path}: the files in it claim more bytes than the {size:,} it has")
        for entry in files:
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > LARGEST_PICKLE:
                    raise BadInput(f"{path}: its pickle has more than {LARGEST_PICKLE:,} bytes")
                _check_pickle(archive.read(entry), PLAIN | stand_ins)


def _check_pickle(data: bytes, allowed: frozenset[str]) -> None:
    """Raise Forbidden for a name that is not allowed, and ValueError for what is no pickle."""
    for code, argument, _ in pickletools.genops(data):
        if code.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in allowed:
                raise Forbidden(name)
        elif code.name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise Forbidden(f"a name by {code.name}")


def renamed(tensors: Mapping[str, Tensor], patterns: Mapping[str, str], what: str) -> State:
    """Return the tensors by our names: patterns of a seed's names, and what becomes of them.

    Raises BadInput for a tensor that fits no pattern: no `what` has a tensor of that name.
    """
    state: State = {}
    for name, tensor in tensors.items():
        matches = ((re.fullmatch(theirs, name), ours) for theirs, ours in patterns.items())
        ours = next((match.expand(ours) for match, ours in matches if match), None)
        if ours is None:
            raise BadInput(f"unexpected tensor {name}: no {what} has a tensor of that name")
        state[ours] = tensor
    return state


def untied(state: State) -> State:
    """Return the state without a copy of the embedding under the head's name.

    Raises BadInput if that copy differs from the embedding.
    """
    head = state.pop("lm_head.weight", None)
    if head is not None and not head.equal(state["embed.weight"]):
        raise BadInput("lm_head.weight differs from embed.weight, but they should be tied")
    return state


def sizes(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises BadInput for another number of dimensions, or a 0."""
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise BadInput(
            f"{name} has shape {shape}; it must have {dimensions} dimensions, all above 0"
        )
    return shape
