"""What the settings of a model and of LoRA refuse, by the rows of refusals.yaml."""

import json
from pathlib import Path

from pion.config.lora import RECORD, Lora, read_record, require_base
from pion.config.model_config import ModelConfig
from tests.pion.config.test_lora_adapter import ADAPTER
from tests.pion.config.test_model_config import FIELDS
from tests.pion.config.test_parts_rope_scaling import SCALING
from tests.support.refusals import in_one_line, refusals
from tests.support.tiny_config import tiny_config


def preset(name: str, changes: dict | None = None) -> None:
    ModelConfig.preset(name, **(changes or {}))


def model(changes: dict) -> None:
    ModelConfig.from_dict(FIELDS | changes)


def only(fields: list[str]) -> None:
    """Make a model of some of the fields that it needs."""
    ModelConfig.from_dict({name: FIELDS[name] for name in fields})


def primitives(changes: dict) -> None:
    usual = {"n": 8, "rank": 4, "top_k": 3, "bands": [[0], [1]]}
    model({"activation": "gelu", "primitives": usual | changes})


def rope_scaling(changes: dict, of: dict | None = None) -> None:
    tiny_config(rope_scaling=SCALING | changes, **(of or {}))


def lora(fields: dict, of: dict | None = None) -> None:
    if isinstance(targets := fields.get("targets"), list):
        fields["targets"] = tuple(targets)
    Lora(**fields).targets_of(tiny_config(**(of or {})))


def adapter(changes: dict) -> None:
    """Read the record of an adapter with other values in its sections."""
    record = json.loads(ADAPTER.to_json())
    for section, fields in changes.items():
        record[section] |= fields
    adapter_file(json.dumps(record))


def adapter_file(content: str | bytes) -> None:
    Path(RECORD).write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        with in_one_line(RECORD):
            read_record(Path())
    finally:
        Path(RECORD).unlink()


def base(sha256: str) -> None:
    require_base(ADAPTER.base, sha256, "here")


OF_A_MODEL = preset, model, only, primitives, rope_scaling, lora, adapter, adapter_file, base
test_refusal = refusals(__file__, *OF_A_MODEL)
