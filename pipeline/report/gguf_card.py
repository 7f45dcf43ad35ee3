"""What the model card says about the GGUF file: how llama.cpp, LM Studio and Ollama use it."""

from __future__ import annotations

import re

from pion.formats.weights import GGUF_FILE
from pipeline.job import Job


def gguf_section(job: Job) -> str:
    """Return the section of the card for a model that is published with a GGUF file."""
    assert job.publish is not None
    target = job.publish.to
    repo = target.removeprefix("hf://") if target.startswith("hf://") else None
    ollama = re.sub(r"[^a-z0-9_.-]", "-", job.name.lower())
    model = f"-hf {repo}" if repo else f"-m {GGUF_FILE}"
    how = "-cnv --jinja" if job.sft else '-no-cnv -p "Once upon a time"'
    fetch = f"hf download {repo} --local-dir {ollama} && cd {ollama}" if repo else f"cd {target}"
    return f"""## In llama.cpp, LM Studio and Ollama

`{GGUF_FILE}` has the same model for llama.cpp, in f16. It was read back, and its tensors compared \
with those of `model.safetensors`. Pion's tests compare such files with llama.cpp, its logits and \
its ids. The commands below were not run for this model, and nobody has tried LM Studio or Ollama.

```bash
{fetch}
llama-cli {model} {how}     # llama.cpp
lms import {GGUF_FILE}      # LM Studio; from the Hub, search for the repository's name
ollama create {ollama} -f Modelfile && ollama run {ollama}
```

Ollama uses the template in `Modelfile`, which does not strip messages: write them without spaces \
around them."""
