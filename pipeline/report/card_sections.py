"""What the model card says of the run's start, of an adapter and of a GGUF file."""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from pion.formats.weights import GGUF_FILE
from pipeline.base.licence import Terms
from pipeline.job import Job
from pipeline.models.find import HUB_REPO

if TYPE_CHECKING:
    from pion.config.lora import Adapter


def base_section(job: Job, terms: Terms | None) -> str:
    """Return the section on the model that the run started from; empty if there is none."""
    if job.base is None or terms is None:
        return ""
    name = base_in_words(job.base.source, job.base.commit)
    at = f" at commit `{job.base.commit}`" if job.base.commit else ""
    start = f"Trained from {name}{at}; its files have the content hash `{job.base.hash}`."
    return "## Base model\n\n" + " ".join([start, _licence(terms), *_template(job)])


def unknown_licence(job: Job) -> str:
    """Return the warning for a model that is published although nobody knows its licence."""
    assert job.base is not None
    return (
        f"nothing says under which licence {job.base.source} is, and publish.private is false. Ask "
        "its authors, and set publish.license"
    )


def _template(job: Job) -> list[str]:
    """Return sentences on the chat template that the conversations of training were written in."""
    if job.template_stage is None or job.base is None:
        return []
    if not job.uses_model_template:
        return ["Conversations are written in Pion's own chat template."]
    section = job.conversations(job.template_stage)
    settings_told = (
        [] if section.system is None else [f"the system message “{section.system.strip()}”"]
    )
    settings_told += [
        f"`{name}: {json.dumps(value)}`" for name, value in section.template_options.items()
    ]
    settings = (
        f", with {' and '.join(settings_told)} unless a caller gives another"
        if settings_told
        else ""
    )
    day = f" In training, its date was {job.base.date}." if job.base.date else ""
    return [f"Its chat template is that of the base model{settings}.{day}"]


def _licence(terms: Terms) -> str:
    if not terms.known:
        return "Its licence is unknown."
    sentences = []
    if terms.license is not None:
        named = f" ({terms.name})" if terms.name else ""
        sentences.append(f"Its licence is {terms.license}{named}.")
    if terms.files:
        files = ", ".join(f"`{path.name}`" for path in terms.files)
        sentences.append(f"In this folder are its files {files}.")
    return " ".join(sentences)


def hub_name(source: str, commit: str | None) -> str | None:
    """Return the repository of a base on the Hub; None for any other base."""
    repo = source.removeprefix("hf://").partition("@")[0]
    return repo if commit is not None and HUB_REPO.fullmatch(repo) else None


def base_in_words(source: str, commit: str | None) -> str:
    """Return what a card calls a base: its repository on the Hub, or else its last name alone.

    The folders above it are those of the machine that trained.
    """
    if repo := hub_name(source, commit):
        return f"[{repo}](https://huggingface.co/{repo})"
    return f"`{name}`" if (name := _last_name(source)) else "a local folder"


def _last_name(source: str) -> str:
    name = PurePath(source).name
    return "" if name == ".." else name


def adapter_sections(to: str, adapter: Adapter) -> str:
    """Return the sections of the card that say what the adapter is and how to load it from where it
    is published."""
    target, base, lora = to.removeprefix("hf://"), adapter.base, adapter.lora
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

Or with Pion, which checks that the base is the right one: `pion chat {to}`"""


def gguf_section(job: Job, target: str, caveat: str) -> str:
    """Return the section of the card for a model that is published at `target` with a GGUF file."""
    repo = target.removeprefix("hf://") if target.startswith("hf://") else None
    ollama = re.sub(r"[^a-z0-9_.-]", "-", job.name.lower())
    model = f"-hf {repo}" if repo else f"-m {GGUF_FILE}"
    how = "-cnv --jinja" if job.converses else '-no-cnv -p "Once upon a time"'
    fetch = f"hf download {repo} --local-dir {ollama} && cd {ollama}" if repo else f"cd {target}"
    return f"""## In llama.cpp, LM Studio and Ollama

`{GGUF_FILE}` has the same model for llama.cpp, in f16. It was read back, and its tensors compared \
with those of `model.safetensors`. Pion's tests compare such files with llama.cpp, its logits and \
its ids. The commands below were not run for this model, and nobody has tried LM Studio or Ollama.
{caveat and f"{chr(10)}{caveat}.{chr(10)}"}
```bash
{fetch}
llama-cli {model} {how}     # llama.cpp
lms import {GGUF_FILE}      # LM Studio; from the Hub, search for the repository's name
ollama create {ollama} -f Modelfile && ollama run {ollama}
```

Ollama uses the template in `Modelfile`, which does not strip messages: write them without spaces \
around them."""
