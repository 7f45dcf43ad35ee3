"""Which files of a model's folder have its weights. Without torch, so that a model is found fast.

transformers splits large models into shards. `model.safetensors.index.json` says which tensor is in
which shard. Files of pickles (`.bin`) are never read: they can run code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import parse_object, read_file

# How the names of a model's legal files begin: its licence, and what this asks to pass on.
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What `publish.gguf` puts next to the weights of an export, for programs other than Pion.
GGUF_FILE, MODELFILE = "model-f16.gguf", "Modelfile"
# The most tensors of a file or a model. Qwen3's largest mixture of experts has 36,000.
MOST_TENSORS = 1 << 16
# The most shards of a model. Models of 2B parameters have one or two.
MOST_SHARDS = 256
# A file in the same folder: no path, no hidden file.
_SHARD = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.safetensors", re.ASCII)
_PICKLES = ("pytorch_model*.bin", "*.bin.index.json")


def is_legal(name: str) -> bool:
    """Return whether a file of this name says under which terms a model may be used."""
    return name.upper().startswith(LEGAL)


def shards_of(index: Path) -> Mapping[str, str]:
    """Return the shard of each tensor by the tensor's name. Raises BadInput for a bad index."""
    try:
        record = parse_object(read_file(index), str(index))
    except OSError as error:
        raise BadInput(f"{index} can't be read ({error.strerror or error})") from None
    shard_of: Any = record.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise BadInput(f"{index}: weight_map is {shown(shard_of)}; it must name each tensor's file")
    if len(shard_of) > MOST_TENSORS:
        raise BadInput(f"{index} has {len(shard_of):,} tensors; at most {MOST_TENSORS:,} are read")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise BadInput(
                f"{index}: the file of {shown(name)} is {shown(shard)}; it must be the name of a "
                ".safetensors file in this folder"
            )
    shards = len(set(shard_of.values()))
    if shards > MOST_SHARDS:
        raise BadInput(f"{index} names {shards:,} files; at most {MOST_SHARDS} are read")
    return shard_of


def no_weights(folder: Path) -> BadInput:
    """Return the error for a folder without safetensors."""
    if _has_pickles(folder):
        return BadInput(
            f"{folder} has its weights in pickles (.bin), which can run code, so they were not "
            f"read. If you trust the folder, convert them: {_conversion(folder)}"
        )
    return BadInput(f"{folder} is not a model: it has no {WEIGHTS} and no {INDEX}")


def _has_pickles(folder: Path) -> bool:
    return any(path.is_file() for pattern in _PICKLES for path in folder.glob(pattern))


def _conversion(folder: Path) -> str:
    """Return the command by which transformers writes safetensors next to the pickles."""
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder)!r})"
    )
    return f"python -c {shlex.quote(code)}"
