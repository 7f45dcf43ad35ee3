"""What the model card says about an adapter: what it adds to which base, and how to use it."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING

from pipeline.job import Job
from pipeline.models.find import HUB_REPO

if TYPE_CHECKING:
    from pion.lora import Adapter


def hub_name(name: str | None) -> str | None:
    """Return the repository of a base on the Hub; None for any other base."""
    repo = (name or "").removeprefix("hf://").partition("@")[0]
    return repo if HUB_REPO.fullmatch(repo) else None


def base_in_words(source: str, commit: str | None) -> str:
    """Return what a card calls a base: its repository on the Hub, or else its last name alone.

    The folders above it are those of the machine that trained.
    """
    repo = hub_name(source) if commit is not None else None
    if repo is not None:
        return f"[{repo}](https://huggingface.co/{repo})"
    return f"`{name}`" if (name := _last_name(source)) else "a local folder"


def _last_name(source: str) -> str:
    name = PurePath(source).name
    return "" if name == ".." else name


def adapter_sections(job: Job, adapter: Adapter) -> str:
    """Return the sections of the card that say what the adapter is and how to load it."""
    assert job.publish is not None
    target, base, lora = job.publish.to.removeprefix("hf://"), adapter.base, adapter.lora
    commit = "" if base.commit is None else f" at commit `{base.commit}`"
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    revision = "" if base.commit is None else f', revision="{base.commit}"'
    named = base.name if base.commit else _last_name(base.name) or "the folder of the base"
    return f"""## Adapter

This folder has only what LoRA trained: additions of rank {lora.rank} (alpha {lora.alpha:g}) to \
{targets}. It needs its base, {base_in_words(base.name, base.commit)}{commit}, whose tensors have \
the SHA-256 `{base.sha256}` (adapter.json).

## How to use it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({json.dumps(named)}{revision})
model = PeftModel.from_pretrained(base, "{target}")
tokenizer = AutoTokenizer.from_pretrained("{target}")
```

Or with Pion, which checks that the base is the right one: `pion chat {job.publish.to}`"""
