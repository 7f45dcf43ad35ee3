"""The Modelfile next to a GGUF file: how Ollama talks to the model.

Ollama renders Go's text/template instead of the Jinja in the file. Its defaults for sampling are
not the model's either, so the Modelfile has all of them.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.template_source import find_template
from pion.data.tokens.special_tokens import GENERATION_CONFIG
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.generation.bounds import published_sampling

# Texts of tokens that mean nothing else in a Modelfile or a template.
_PLAIN = re.compile(r"[^\s\"{}\\]+")
# What Ollama calls the numbers of generation_config.json, and values for those that are not there:
# Ollama's own defaults would change the model's answers.
_PARAMETERS = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repeat_penalty", 1.0),
}
_OTHERS = """\
# The file has the model's chat template. Ollama chooses a template like it, if it knows one:
# compare `ollama show --template` with the file's."""


def modelfile(folder: Path, file: str, seq_len: int) -> str:
    """Return the Modelfile for the GGUF file called `file` of the exported model in `folder`.

    Raises BadInput for a stop that a Modelfile can't write, and for damaged files.
    """
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    with closing(ChatFormat(folder / "tokenizer.json", tokenizer)) as chat:
        own_format, stop_ids = chat.own, chat.stop_ids
    stops = [tokenizer.decode([number], specials=True) for number in stop_ids]
    for stop in stops:
        if not _PLAIN.fullmatch(stop):
            raise BadInput(f"a Modelfile can't write the token {stop!r:.80}, which ends an answer")
    generation = published_sampling(folder / GENERATION_CONFIG)
    template = _OTHERS
    if find_template(folder) is None:
        template = f"TEMPLATE {_quoted('{{ .Prompt }}')}"
    elif own_format:
        template = f"TEMPLATE {_quoted(go_template(stops[0]))}"
    parameters = [
        *(f"stop {json.dumps(stop)}" for stop in stops),
        f"num_ctx {seq_len}",
        *(
            f"{name} {generation.get(ours, default):g}"
            for ours, (name, default) in _PARAMETERS.items()
        ),
    ]
    return "\n".join([f"FROM ./{file}", template, *(f"PARAMETER {p}" for p in parameters), ""])


def go_template(end: str) -> str:
    """Return Pion's chat template for Go's text/template; `end` is the text that ends an answer.

    Go can't strip texts. So the ids are Pion's for messages without spaces around them.
    """
    turns = "".join(
        f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}<|{role}|>\n{{{{ .Content }}}}\n'
        f"{end if role == 'assistant' else ''}"
        for number, role in enumerate(("system", "user", "assistant"))
    )
    each = f"{{{{ range .Messages }}}}{{{{ if .Content }}}}{turns}{{{{ end }}}}{{{{ end }}}}"
    return f"{each}{{{{ end }}}}<|assistant|>\n"


def _quoted(template: str) -> str:
    return f'"""{template}"""'
