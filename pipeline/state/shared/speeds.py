"""How fast the runs of a store trained: `_data/speeds/`.

`pion plan` reads these records, and not the runs: a store may have thousands. A record is written
again by each run that trains the same model on the same kind of card, so the newest run counts. It
is a hint and decides nothing: a record that can't be read counts as none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Lt

from pipeline.state.head import SHARED
from pipeline.state.record_file import RecordFile, dump_record, strictly
from pipeline.state.record_json import Count, Time, open_record, to_json
from pipeline.state.shared.records import RunName
from pipeline.state.stores import Store
from pipeline.state.stores.base import read_all

SPEEDS = f"{SHARED}/speeds"
# The model's fields that its speed does not depend on. Rows have their own length.
NOT_ABOUT_SPEED = frozenset(
    f"model.{name}"
    for name in ("seq_len", "rope_theta", "norm_eps", "init_std", "tie_embeddings", "family")
)
# The most kinds of cards and rows of one model that are read.
MOST = 100

PerSecond = Annotated[float, Gt(0), Lt(1e12)]


@open_record
@dataclass(frozen=True)
class PastSpeed:
    """Tokens per second of one worker of `run`, which trained rows of `seq_len` tokens.

    `device` is CUDA's name of the card. `lora`: whether the model was frozen and had additions.
    """

    run: RunName
    at: Time
    device: str
    seq_len: Count
    tokens_per_second: PerSecond
    lora: bool = False


def keep_train_speed(store: Store, model: Mapping[str, Any], speed: PastSpeed) -> None:
    """Write the speed of a model with these inputs of a digest, with the next commit where the
    store has commits. Raises StoreError."""
    card = re.sub(r"[^a-z0-9]+", "-", speed.device.lower()).strip("-")[:60] or "unknown"
    name = f"{card}-{speed.seq_len}{'-lora' if speed.lora else ''}.json"
    store.write(_folder(model) + name, dump_record(speed))


def read_train_speeds(store: Store, model: Mapping[str, Any]) -> list[PastSpeed]:
    """Return the speeds of a model with these inputs of a digest, the newest first. Raises
    StoreError."""
    keys = [entry.key for entry in store.list(_folder(model)) if entry.key.endswith(".json")]
    kind = strictly(PastSpeed)
    speeds = read_all(lambda key: RecordFile(store, key, kind).read_if_readable()[0], keys[:MOST])
    return sorted((s for s in speeds if s is not None), key=lambda speed: -speed.at)


def about_speed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return those inputs of a model on which its speed depends."""
    return {path: value for path, value in model.items() if path not in NOT_ABOUT_SPEED}


def _folder(model: Mapping[str, Any]) -> str:
    about = to_json(about_speed(model))
    return f"{SPEEDS}/{hashlib.sha256(about.encode()).hexdigest()[:32]}/"
