"""LoRA without torch: its settings and sizes, and the record of the base that an adapter is for.

LoRA (Hu et al. 2022, "LoRA: Low-rank adaptation of large language models") freezes a base model and
trains two small matrices next to some of its projections. An adapter has these additions without
their base. The file adapter.json lies next to an adapter's tensors, in a checkpoint and in a
published folder. It has the settings of LoRA and names the base. A base is named by what a person
calls it, and proved by a hash of its tensors. Folders of peft (pion/formats/peft_folder.py) are
adapters too.

Nothing here imports torch, so that a job is read and a model is found fast. The maths is in
pion/model/lora_projections.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pion.config.model_config import ModelConfig
from pion.config.part_fields import is_number, is_whole
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pion.untrusted import parse_object, read_file

ALL_LINEAR: Literal["all-linear"] = "all-linear"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RECORD = "adapter.json"
# The files of a folder in peft's format: settings, tensors, and tensors that only a pickle has.
PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS, PEFT_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "commit": re.compile(r"[0-9a-f]{7,64}")}
LONGEST_NAME = 1000


@dataclass(frozen=True)
class Lora:
    """What LoRA adds to a model: y = base(x) + (alpha / rank) · B(A(x)).

    Attributes:
        rank: the rows of A and the columns of B.
        alpha: the addition is scaled by alpha / rank.
        targets: "all-linear", or the names of projections, such as `q_proj`. The projections of
            these names get an addition in each layer. The head never gets one.
        base_dtype: of the values of the frozen base. None: the base's own; bfloat16: rounded.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    base_dtype: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        named = self.targets != ALL_LINEAR
        if not is_whole(self.rank) or self.rank < 1:
            raise BadInput(f"rank: {shown(self.rank)} must be a whole number of at least 1")
        if not is_number(self.alpha, above=0):
            raise BadInput(f"alpha: {shown(self.alpha)} must be a finite number above 0")
        if self.base_dtype not in (None, "bfloat16"):
            raise BadInput(f"base_dtype: {shown(self.base_dtype)} must be bfloat16, or left out")
        if named and (not isinstance(self.targets, tuple) or not self.targets):
            raise BadInput(f"targets: {shown(self.targets)} must be all-linear or a list of names")
        if named and len(set(self.targets)) < len(self.targets):
            raise BadInput(f"targets: {shown(list(self.targets))} names a projection twice")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B(A(x))."""
        return self.alpha / self.rank

    def targets_of(self, config: ModelConfig) -> tuple[str, ...]:
        """Return the names of the projections of this model that get an addition.

        Raises BadInput, beginning with the name of the wrong field, for a target that the model
        does not have or that can't have an addition, and for a rank above a projection's smaller
        side.
        """
        shapes = target_shapes(config)
        names = self._names(config, shapes)
        narrowest = min(names, key=lambda name: min(shapes[name]))
        if self.rank > (side := min(shapes[narrowest])):
            raise BadInput(f"rank: {self.rank} is above {side}, the smaller side of {narrowest}")
        return names

    def _names(self, config: ModelConfig, known: Collection[str]) -> tuple[str, ...]:
        if self.targets == ALL_LINEAR:
            if config.feedforward != "dense":
                raise BadInput(
                    f"targets: all-linear can't reach the {config.feedforward} of this model's "
                    f"feed-forward layers. Name projections of attention: [{', '.join(known)}]"
                )
            return tuple(known)
        for name in self.targets:
            if name not in known:
                raise BadInput(
                    f"targets: the model has no projection {shown(name)} that LoRA can adapt"
                    f"{closest(name, known)}; it has {', '.join(known)}"
                )
        return tuple(name for name in known if name in self.targets)


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the projections that LoRA can adapt, by their names.

    These are attention's projections, and those of dense feed-forward layers. The matrices of
    experts and primitives are no projections.
    """
    query, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = {
        "q_proj": (query, config.d_model),
        "k_proj": (kv, config.d_model),
        "v_proj": (kv, config.d_model),
        "o_proj": (config.d_model, query),
    }
    if config.feedforward == "dense":
        up, down = (config.d_ff, config.d_model), (config.d_model, config.d_ff)
        gate = {"gate_proj": up} if config.gated else {}
        shapes |= {**gate, "up_proj": up, "down_proj": down}
    return shapes


@dataclass(frozen=True)
class LoraCost:
    """The additions to a model: the numbers in all A and B, and how many A and B there are."""

    params: int
    tensors: int


@lru_cache(maxsize=16)
def lora_cost(config: ModelConfig, lora: Lora) -> LoraCost:
    """Return the costs of the additions. Raises BadInput if they don't fit the model."""
    shapes, targets = target_shapes(config), lora.targets_of(config)
    adapted = [
        shapes[name]
        for layer in range(config.n_layers)
        for name in targets
        if name not in ATTENTION or layer in config.attention_layers
    ]
    return LoraCost(lora.rank * sum(map(sum, adapted)), 2 * len(adapted))


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
    section = record.get(name)
    if not isinstance(section, dict):
        raise BadInput(f"{name} is {shown(section)}; it must be an object")
    return section


def _lora(fields: Mapping[str, Any]) -> Lora:
    names = {field.name for field in dataclasses.fields(Lora)}
    if fields.keys() != names:
        raise BadInput(f"lora has the fields {shown(sorted(fields))}, not {shown(sorted(names))}")
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
