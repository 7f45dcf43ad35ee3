"""An adapter: LoRA's additions without their base, and the record of what they belong to.

The file adapter.json lies next to an adapter's tensors, in a checkpoint and in a published folder.
It has the settings of LoRA and names the base. A base is named by what a person calls it, and
proved by a hash of its tensors.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pion.errors import BadInput
from pion.later_fields import shown
from pion.lora import ALL_LINEAR, Lora
from pion.model.decoder import Decoder
from pion.model.lora import add_lora, additions, merge, round_weights
from pion.model.tensor_hash import tensors_sha256
from pion.untrusted import parse_object, read_file

RECORD = "adapter.json"
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "commit": re.compile(r"[0-9a-f]{7,64}")}
LONGEST_NAME = 1000


@dataclass(frozen=True)
class BaseModel:
    """The identity of a base.

    Attributes:
        name: what `pion chat` would call it: a Hub repository, a folder, or a checkpoint of a run.
        sha256: the hash of its tensors (pion/model/tensor_hash.py); None: not recorded, as in
            folders that peft wrote.
        commit: the commit of a Hub repository.
    """

    name: str
    sha256: str | None = None
    commit: str | None = None

    @classmethod
    def of(cls, model: Decoder, name: str, commit: str | None = None) -> BaseModel:
        """Return the identity of `model`."""
        return cls(name, tensors_sha256(model.state_dict()), commit)


@dataclass(frozen=True)
class Adapter:
    """The settings of an adapter, and its base."""

    lora: Lora
    base: BaseModel

    def to_json(self) -> bytes:
        """Return the content of adapter.json."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()


def read_record(folder: Path) -> Adapter | None:
    """Return what adapter.json in `folder` says; None without such a file.

    Raises BadInput that names the file for anything that `Adapter.to_json` does not write.
    """
    path = folder / RECORD
    try:
        record = parse_object(read_file(path), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror or error})") from None
    try:
        return Adapter(_lora(_section(record, "lora")), _base(_section(record, "base")))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def _section(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    if not isinstance(found, dict):
        raise BadInput(f"{name} is {shown(found)}; it must be an object")
    return found


def _lora(fields: Mapping[str, Any]) -> Lora:
    known = {field.name for field in dataclasses.fields(Lora)}
    if fields.keys() != known:
        raise BadInput(f"lora has the fields {shown(sorted(fields))}, not {shown(sorted(known))}")
    targets = fields["targets"]
    if isinstance(targets, list):
        if not all(isinstance(name, str) for name in targets):
            raise BadInput(f"lora.targets is {shown(targets)}; it must be names")
        targets = tuple(targets)
    elif targets != ALL_LINEAR:
        raise BadInput(f"lora.targets is {shown(targets)}; it must be all-linear or a list")
    return Lora(**{**fields, "targets": targets})


def _base(fields: Mapping[str, Any]) -> BaseModel:
    name = fields.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise BadInput(f"base.name is {shown(name)}; it must be the name of a model")
    for key, pattern in _HEX.items():
        value = fields.get(key)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise BadInput(f"base.{key} is {shown(value)}; it must be a hash in hexadecimal digits")
    return BaseModel(name, fields.get("sha256"), fields.get("commit"))


def require_base(wanted: BaseModel, found: BaseModel, where: str) -> None:
    """Raise BadInput unless `found` has the tensors of the `wanted` base of the adapter `where`."""
    if wanted.sha256 is not None and wanted.sha256 != found.sha256:
        raise BadInput(
            f"{where} is an adapter of {wanted.name} with the tensors {wanted.sha256[:12]}…, but "
            f"{found.name} has the tensors {str(found.sha256)[:12]}…. Nothing was changed. Bring "
            "back the base that the adapter was trained on."
        )


def apply_adapter(base: Decoder, lora: Lora, tensors: Mapping[str, Tensor]) -> Decoder:
    """Return `base`, a decoder in fp32, with the additions `tensors` merged into it.

    `base` may not be used afterwards. Raises BadInput for tensors that are not the additions of
    these settings.
    """
    lora.targets_of(base.config)
    if lora.base_dtype == "bfloat16":
        round_weights(base)
    add_lora(base, lora, seed=0)
    _copy(tensors, additions(base))
    return merge(base)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name in sorted(target.keys() ^ source.keys()):
        problem = "there is no tensor" if name in target else "unexpected tensor"
        raise BadInput(f"{problem} {shown(name)} of LoRA")
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}; the settings of LoRA need "
                f"{tuple(target[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise BadInput(f"{name} has numbers that are not finite")
        target[name].copy_(tensor)
