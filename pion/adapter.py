"""An adapter: LoRA's additions without their base, and the record of what they belong to.

The file adapter.json lies next to an adapter's tensors, in a checkpoint and in a published folder.
It has the settings of LoRA and names the base. A base is named by what a person calls it, and
proved by a hash of its tensors. Folders of peft (pion/formats/peft_folder.py) are adapters too.

Without torch, so that a model is found fast.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown
from pion.lora import ALL_LINEAR, Lora
from pion.untrusted import parse_object, read_file

RECORD = "adapter.json"
# The files of a folder in peft's format: settings, tensors, and tensors that only a pickle has.
PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS, PEFT_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "commit": re.compile(r"[0-9a-f]{7,64}")}
LONGEST_NAME = 1000


@dataclass(frozen=True)
class BaseModel:
    """The identity of a base.

    Attributes:
        name: what `pion chat` would call it: a Hub repository, a folder, or a checkpoint of a run.
        sha256: the hash of its tensors (pion/model/parameters.py); None: not recorded, as in
            folders that peft wrote.
        commit: the commit of a Hub repository.
    """

    name: str
    sha256: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Adapter:
    """The settings of an adapter, and its base."""

    lora: Lora
    base: BaseModel

    def to_json(self) -> bytes:
        """Return the content of adapter.json."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()


def is_peft_folder(folder: Path) -> bool:
    """Return whether a folder has an adapter in peft's format, whether or not we may read it."""
    return any((folder / name).is_file() for name in (PEFT_CONFIG, PEFT_TENSORS, PEFT_PICKLE))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has LoRA's additions to a base, and not a whole model."""
    return (folder / RECORD).is_file() or is_peft_folder(folder)


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


def require_base(wanted: BaseModel, sha256: str, where: str) -> None:
    """Raise BadInput unless `sha256` is the hash of the `wanted` base of the adapter `where`."""
    if wanted.sha256 not in (None, sha256):
        raise BadInput(
            f"{where} is an adapter of {wanted.name} with the tensors {str(wanted.sha256)[:12]}…, "
            f"but the model found there has the tensors {sha256[:12]}…. Nothing was changed. Bring "
            "back the base that the adapter was trained on"
        )
