"""A model's draft block in the folder `draft`, next to the files of an exported model.

Other programs read the model as if there were no block. Pion reads the block if somebody asks for
drafts. It belongs to one model: `draft.json` has the hash of that model's tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pion.config.draft import Draft
from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.model_tensors import saved_model_tensors
from pion.formats.target_folder import FOLDERS
from pion.formats.weights import read_settings, read_tensors
from pion.later_fields import shown
from pion.model.decoder import Decoder
from pion.model.parameters import require_finite, require_possible, tensors_sha256
from pion.model.saved_weights import Tensors

FOLDER = "draft"
RECORD, TENSORS = FOLDERS[FOLDER]


def with_draft(model: Decoder, folder: Path) -> Decoder:
    """Return a model from `folder` with the draft block that lies next to it, or without one.

    The new model copies the weights. Raises BadInput that names the file for a damaged file, and
    for a block of another model: of another width or vocabulary, or with other tensors.
    """
    if not _has_block(folder / FOLDER):
        return model
    try:
        return _with_block(model, folder)
    except BadInput as error:
        raise BadInput(
            f"{error}. Nothing was changed, and the model itself can be used: leave the drafts out "
            "(--drafts off), or export the model and its block again (pion export)"
        ) from None


def _has_block(block: Path) -> bool:
    """Return whether there is a block, or what is left of one: also a link that leads nowhere."""
    lost = block.is_symlink() and not block.exists()
    return lost or any(p.exists() or p.is_symlink() for p in (block / RECORD, block / TENSORS))


def _with_block(model: Decoder, folder: Path) -> Decoder:
    path, tensors_path = folder / FOLDER / RECORD, folder / FOLDER / TENSORS
    record = read_settings(path, "a draft block")
    config = _config(record, model.config, path)
    trunk = record.get("trunk_sha256")
    sha256 = tensors_sha256(Tensors(saved_model_tensors(folder)))
    if not isinstance(trunk, str):
        raise BadInput(f"{path}: trunk_sha256 is {shown(trunk)}; it must be a hash")
    if trunk != sha256:
        raise BadInput(
            f"{path}: this draft block learned from a model with the tensors {shown(trunk[:12])}…, "
            f"but the model in {folder} has the tensors {sha256[:12]}…, so its guesses would be of "
            "no use"
        )
    read = read_tensors(tensors_path, absent=f"{folder / FOLDER} has no {TENSORS}")
    tensors = {f"draft.{name}": tensor for name, tensor in read.items()}
    state = model.state_dict() | tensors
    try:
        require_possible(config, state)
        require_finite(tensors)
        return Decoder.from_state(config, state, model.embed.weight.dtype)
    except BadInput as error:
        raise BadInput(f"{tensors_path}: {error}") from None


def _config(record: dict[str, Any], own: ModelConfig, path: Path) -> ModelConfig:
    """Return the settings of the model with the block of a record. Raises BadInput."""
    settings = record.get("draft")
    if not isinstance(settings, dict) or not settings.keys() <= {"steps", "ids"}:
        raise BadInput(f"{path}: draft is {shown(settings)}; it must have steps and ids")
    for name, meaning in (("d_model", "hidden states of width"), ("vocab_size", "ids:")):
        if record.get(name) != getattr(own, name):
            raise BadInput(
                f"{path}: this draft block is for {meaning} {shown(record.get(name))}, and the "
                f"model next to it has {getattr(own, name)}, so it belongs to another model"
            )
    try:
        return replace(own, draft=Draft(**settings))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
