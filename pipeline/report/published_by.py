"""The mark in a published model's card that says which run published it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion.files import sha256_file
from pion.untrusted import read_file
from pipeline.base.licence import front_matter
from pipeline.job import Job
from pipeline.state.stores import open_store

CARD = "README.md"
LARGEST_CARD = 1 << 20
# Of a model, and of an adapter.
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def run_id(job: Job) -> str:
    """Return the mark of the job's run: a hash, because the address of a store is nobody's."""
    return hashlib.sha256(f"{open_store(job.store).url}/{job.name}".encode()).hexdigest()[:16]


def other_run(job: Job, card: str) -> str | None:
    """Return the name of the other run that published a card; None if this run or nobody did."""
    fields = front_matter(card)
    name, mark = fields.get("model_name"), fields.get("pion_run")
    return name if isinstance(name, str) and mark != run_id(job) else None


def card_in(folder: Path) -> str:
    """Return the card of a published folder; "" if there is none that can be read."""
    try:
        return read_file(folder / CARD, LARGEST_CARD).decode(errors="replace")
    except OSError:
        return ""


def weights_sha256(folder: Path) -> str | None:
    """Return the hash of a published folder's weights; None if there are none to read."""
    for name in WEIGHTS:
        with contextlib.suppress(OSError):
            return sha256_file(folder / name)
    return None


def is_still_there(result: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the folder has the weights that a run published."""
    sha256 = weights_sha256(folder)
    return sha256 is not None and sha256 == result.get("sha256")
