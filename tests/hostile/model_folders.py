"""Folders with a tiny model, to damage."""

import functools
import json
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads, RopeScaling
from pion.config.primitives import Primitives
from pion.config.slots import Slots
from pion.formats.huggingface.architectures import to_transformers
from pion.model.decoder import Decoder
from tests.hostile.attacks import nested
from tests.support.capped_models import MIXED
from tests.support.finished_run import tiny_tokenizer
from tests.support.tiny_config import tiny_config

PLAIN = tiny_config(vocab_size=300, seq_len=64)
# Every part of a model, each in use.
PARTS = ModelConfig.from_dict(
    MIXED.to_dict() | {"vocab_size": 300, "draft": {"ids": 40}, "scales": {}}
)
# Slots exclude most other parts.
SLOTS = replace(PLAIN, slots=Slots(per_segment=2, segment=8, window=2))
# Primitives exclude experts.
PRIMITIVES = replace(
    PARTS,
    experts=None,
    activation="relu2",
    primitives=Primitives(n=4, rank=4, top_k=2, bands=((0, 1), (2, 3)), ternary=True),
)
# A Llama with scaled positions.
SCALED = replace(
    PLAIN,
    heads=Heads(qk_norm=False),
    rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=16),
)
DEEP = nested(100_000)
ESCAPE = "\x1b]0;owned\x07"


@functools.cache
def _built(config: ModelConfig, foreign: bool) -> Path:
    """Return a folder with the model of `config`, ours or for transformers."""
    folder = Path(tempfile.mkdtemp(prefix="pion-hostile-"))
    torch.manual_seed(0)
    state = Decoder(config).state_dict()
    record = config.to_dict()
    if foreign:
        record, state = to_transformers(config, state)
    (folder / "config.json").write_text(json.dumps(record))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights(folder))
    tiny_tokenizer().save(folder / "tokenizer.json")
    return folder


def model_folder(folder: Path, config: ModelConfig = PLAIN, *, foreign: bool = False) -> Path:
    """Return `folder` with a model and its tokenizer."""
    return Path(shutil.copytree(_built(config, foreign), folder, dirs_exist_ok=True))


def record_of(folder: Path) -> dict[str, Any]:
    """Return the settings in a model's folder."""
    return json.loads((folder / "config.json").read_text())


def edit(folder: Path, **settings: Any) -> None:
    """Change some settings of a model."""
    (folder / "config.json").write_text(json.dumps(record_of(folder) | settings))


def edit_tokenizer(folder: Path, **settings: Any) -> None:
    """Change some settings of a model's tokenizer."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def weights(folder: Path) -> Path:
    """Return the file with a model's weights."""
    return folder / "model.safetensors"


def raw_safetensors(path: Path, header: str | bytes, data: bytes = b"", length: int = -1) -> None:
    """Write a safetensors file whose header has this text, and claims `length` bytes."""
    text = header.encode() if isinstance(header, str) else header
    claimed = len(text) if length < 0 else length
    path.write_bytes(struct.pack("<Q", claimed) + text + data)
