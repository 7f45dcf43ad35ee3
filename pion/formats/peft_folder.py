"""Adapter folders of peft: adapter_config.json and adapter_model.safetensors.

We write them so that peft loads them on transformers' stock class of the base, and read those that
we or peft wrote. A setting that changes what an adapter computes, and that we don't have, is
refused. Next to them we write adapter.json, which has the hash of the base (pion/config/lora.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pion.config.lora import (
    PEFT_CONFIG,
    PEFT_PICKLE,
    PEFT_TENSORS,
    RECORD,
    Adapter,
    BaseModel,
    Lora,
    read_record,
)
from pion.config.model_config import ModelConfig
from pion.config.part_fields import is_number, is_whole
from pion.errors import BadInput
from pion.formats.huggingface.architectures import architecture_of
from pion.formats.weights import read_settings, read_tensors, write_safetensors
from pion.later_fields import shown
from pion.model.lora_projections import A, B
from pion.model.saved_weights import without_values

_PREFIX = "base_model.model."
_ENDS = {A: "lora_A.weight", B: "lora_B.weight"}
# A name of a tensor that peft's LoRA writes: the layer and the matrix.
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")

# Fields of adapter_config.json that do not change what a trained adapter computes, or that are
# checked by themselves. All others must be absent, null, false or empty.
_HARMLESS = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "task_type",
    )
)
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "task_type": ("CAUSAL_LM", None),
    # Others, such as "pissa", may have changed the base.
    "init_lora_weights": (True, False, "gaussian"),
}


def write_adapter_folder(
    folder: Path, config: ModelConfig, adapter: Adapter, tensors: Mapping[str, Tensor]
) -> None:
    """Write the additions `tensors`, by our names, of a base with settings `config` to `folder`.

    Raises BadInput if no stock architecture has the projections of the base as they are, and
    OSError if the folder can't be written.
    """
    theirs = _their_modules(config, adapter.lora)
    renamed = {}
    for name, tensor in tensors.items():
        module, _, end = name.rpartition(".")
        renamed[f"{_PREFIX}{theirs[module]}.{_ENDS[end]}"] = tensor.float()
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.base.commit,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in theirs.values()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / PEFT_CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    (folder / RECORD).write_bytes(adapter.to_json())
    write_safetensors(folder / PEFT_TENSORS, renamed, {"format": "pt"})


def read_adapter_folder(folder: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """Return the settings and the tensors, by peft's names, of an adapter folder.

    The base has the hash that adapter.json records, if there is one. Raises BadInput that names the
    file for a missing or damaged file, settings that we can't compute, and pickled tensors.
    """
    if not (folder / PEFT_TENSORS).is_file() and (folder / PEFT_PICKLE).is_file():
        raise BadInput(
            f"{folder / PEFT_PICKLE} is a pickle, which could run any code, so it was not read. "
            "Save the adapter with peft again: it writes adapter_model.safetensors"
        )
    fields = _read_fields(folder / PEFT_CONFIG)
    absent = f"{folder} is not an adapter: it has no {PEFT_TENSORS}"
    tensors = read_tensors(folder / PEFT_TENSORS, absent)
    try:
        adapter = Adapter(_lora(fields, tensors), _base(fields))
    except BadInput as error:
        raise BadInput(f"{folder / PEFT_CONFIG}: {error}") from None
    record = read_record(folder)
    if record is None:
        return adapter, tensors
    ours, theirs = record.lora, adapter.lora
    if (ours.rank, ours.alpha) != (theirs.rank, theirs.alpha):
        raise BadInput(
            f"{folder}: {RECORD} has rank {ours.rank} and alpha {ours.alpha:g}, but {PEFT_CONFIG} "
            f"has {theirs.rank} and {theirs.alpha:g}. Publish the adapter again"
        )
    return record, tensors


def base_of(folder: Path) -> BaseModel:
    """Return the base of the adapter in `folder`. Raises BadInput that names a wrong file."""
    record = read_record(folder)
    if record is not None:
        return record.base
    try:
        return _base(_read_fields(folder / PEFT_CONFIG))
    except BadInput as error:
        raise BadInput(f"{folder / PEFT_CONFIG}: {error}") from None


def our_names(
    config: ModelConfig, adapter: Adapter, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return an adapter folder's tensors by the names that they have in a decoder of `config`.

    Raises BadInput for a tensor of a layer that the base does not have.
    """
    ours = {module: name for name, module in _their_modules(config, adapter.lora).items()}
    ends = {end: name for name, end in _ENDS.items()}
    tensors_by_name = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in ours:
            raise BadInput(f"unexpected tensor {shown(name)}: the base has no such projection")
        tensors_by_name[f"{ours[match[1]]}.{ends[match[2] + '.weight']}"] = tensor
    return tensors_by_name


def require_adaptable(config: ModelConfig, lora: Lora) -> None:
    """Raise BadInput if no stock class of transformers has the target projections of the model, or
    if it has them within a model of images too, where their names are others."""
    if len(config.came_from) > 1:
        raise BadInput(
            f"{config.came_from[0]} in transformers has the text model within another model, so "
            "peft would leave out an adapter of the text model. Publish the merged model"
        )
    _their_modules(config, lora)


def _their_modules(config: ModelConfig, lora: Lora) -> dict[str, str]:
    """Return the name in the stock architecture of each target projection, by our name."""
    architecture = architecture_of(config)
    state = without_values(config).state_dict()
    _, written = architecture.write(config, dict(state))
    theirs = {id(tensor): name for name, tensor in written.items()}
    targets = lora.targets_of(config)
    modules = {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets or not name.endswith(".weight"):
            continue
        if not architecture.stock or id(tensor) not in theirs:
            raise BadInput(
                f"{architecture.name} in transformers has no projection {module}, so peft can't "
                "load an adapter of this model. Publish the merged model"
            )
        modules[module] = theirs[id(tensor)].removesuffix(".weight")
    return modules


def _read_fields(path: Path) -> dict[str, Any]:
    fields = read_settings(path, "an adapter")
    for name, allowed in _REQUIRED.items():
        value = fields.get(name, allowed[0])
        if not any(value is constant or value == constant for constant in allowed):
            raise BadInput(f"{path}: {name} is {shown(value)}; only {shown(allowed[0])} is read")
    for name, value in fields.items():
        if name not in _HARMLESS and value not in (None, False, {}, [], ""):
            raise BadInput(f"{path}: {shown(name)} is {shown(value)}, which Pion can't compute")
    return fields


def _lora(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Lora:
    """Return the settings; the names of the tensors tell which projections are adapted."""
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not is_whole(rank) or not is_number(alpha):
        raise BadInput(f"r is {shown(rank)} and lora_alpha is {shown(alpha)}; both must be numbers")
    targets = {match[1].rpartition(".")[2] for n in tensors if (match := _NAME.fullmatch(n))}
    return Lora(rank, float(alpha), tuple(sorted(targets)))  # type: ignore[arg-type]


def _base(fields: Mapping[str, Any]) -> BaseModel:
    name, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    if not isinstance(name, str) or not name:
        raise BadInput(
            f"base_model_name_or_path is {shown(name)}; it must name the base. Write the base's "
            "folder or Hub repository there"
        )
    if revision is not None and not isinstance(revision, str):
        raise BadInput(f"revision is {shown(revision)}; it must be text")
    return BaseModel(name, commit=revision or None)
