"""Write the tokenizer of an exported model as transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import chat_template, response_template
from pion.data.chat.template_source import TEMPLATE_FILE, find_template
from pion.data.tokens.special_tokens import GENERATION_CONFIG
from pion.data.tokens.token_names import FILES, TOKENIZER_CONFIG, read_optional, token_names
from pion.data.tokens.tokenizer import Tokenizer
from pion.untrusted import LARGEST_TOKENIZER, read_file, read_json

TOKENIZER_FILE = "tokenizer.json"
# Templates for other uses than chatting, each in a file of this folder.
MORE_TEMPLATES = "additional_chat_templates"
_TEMPLATES = (TEMPLATE_FILE, MORE_TEMPLATES)
# The class that splits words as tokenizer.json says. transformers 5 rebuilds the steps of others.
READS_THE_FILE = "PreTrainedTokenizerFast"
# The key of tokenizer_config.json that says where an answer begins and ends.
RESPONSE = "response_template"
# The files of a model that belong to its tokenizer. Only the first must be there.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *_TEMPLATES,
)


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer of a model of others, which is exported with the files that it came with.

    Attributes:
        folder: the folder with the model's TOKENIZER_FILES.
        stop_ids: the ids that end a text (`SpecialTokens.stop_ids`).
        pad: the id that fills unused tails (`SpecialTokens.pad`).
        template: a chat template in place of the model's own. None: the files stay as they are,
            byte for byte, but for a stop and a class that other programs need.
        generation: the model's generation_config.json: the sampling settings, and the ids that it
            names for the begin of a text and for padding.
    """

    folder: Path
    stop_ids: tuple[int, ...]
    pad: int
    template: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


def exported_tokenizer(
    path: Path, *, imported: bool, originals: Path | None = None
) -> Path | ModelTokenizer:
    """Return how the tokenizer of a trained model is exported, which is at `path`.

    That of an `imported` model is exported with the files that it came with: those next to `path`,
    or all that are in the folder `originals`. Raises BadInput for damaged files.
    """
    folder = originals or path.parent
    if not imported or not (folder / TOKENIZER_CONFIG).is_file():
        return path
    with closing(ChatFormat(path, Tokenizer.from_file(path))) as trained:
        special = trained.special
    template = find_template(path.parent)
    changed = template if template != find_template(folder) else None
    generation = read_optional(folder / GENERATION_CONFIG)
    return ModelTokenizer(folder, special.stop_ids, special.pad, changed, generation)


def tokenizer_file(tokenizer: str | Path | ModelTokenizer) -> Path:
    """Return the path of the tokenizer.json."""
    return (
        tokenizer.folder / TOKENIZER_FILE
        if isinstance(tokenizer, ModelTokenizer)
        else Path(tokenizer)
    )


def stop_and_pad(
    source: str | Path | ModelTokenizer, tokenizer: Tokenizer
) -> dict[str, int | list[int]]:
    """Return the entries of config.json and generation_config.json with the stops and the pad.

    The stops of a model of others are a list, and it keeps the pad and the first id that it names.
    Pion's own models have one stop.
    """
    if isinstance(source, ModelTokenizer):
        named = {
            name: source.generation[name]
            for name in ("bos_token_id", "pad_token_id")
            if type(token := source.generation.get(name)) is int
            and 0 <= token < tokenizer.vocab_size
        }
        return {"eos_token_id": list(source.stop_ids), "pad_token_id": source.pad, **named}
    return {"eos_token_id": tokenizer.end_of_text, "pad_token_id": tokenizer.pad}


def write_tokenizer(
    folder: Path, tokenizer: str | Path | ModelTokenizer, seq_len: int, *, chat: bool
) -> None:
    """Write the files of a tokenizer, with our chat template if the model learned it (`chat`).

    The files of a `ModelTokenizer` are copied, so `seq_len` and `chat` do not count for it.

    Raises BadInput for a file that is no tokenizer, and OSError if the folder can't be written.
    """
    if isinstance(tokenizer, ModelTokenizer):
        copy_tokenizer(tokenizer.folder, folder, template=tokenizer.template)
        _name_a_stop(folder, tokenizer.stop_ids)
        _name_the_class(folder)
        return
    read_back = Tokenizer.from_file(tokenizer)
    if chat:
        (folder / TEMPLATE_FILE).write_text(chat_template(read_back), encoding="utf-8")
    settings = read_json(tokenizer, LARGEST_TOKENIZER)
    # In training nothing was truncated or padded, and only a first token was added.
    settings |= {"truncation": None, "padding": None}
    if read_back.first is None:
        settings["post_processor"] = None
    write_json(folder / TOKENIZER_FILE, settings)
    names = {token["id"]: token["content"] for token in settings["added_tokens"]}
    first = {} if read_back.first is None else {"bos_token": names[read_back.first]}
    answers = {RESPONSE: response_template(read_back)} if chat else {}
    write_json(
        folder / TOKENIZER_CONFIG,
        {
            "tokenizer_class": READS_THE_FILE,
            **first,
            "eos_token": names[read_back.end_of_text],
            "pad_token": names[read_back.pad],
            "model_max_length": seq_len,
            "clean_up_tokenization_spaces": False,
            **answers,
        },
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does, with a line for each entry."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path, *, template: str | None = None) -> None:
    """Copy the TOKENIZER_FILES of a model, byte for byte, but with `template` if it is given.

    Raises BadInput for a file that is too large, and OSError if the folder can't be written.
    """
    for name in _present(source):
        if template is not None and name.split("/")[0] in _TEMPLATES:
            continue
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(read_file(source / name, LARGEST_TOKENIZER))
    if template is None:
        return
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    config = read_optional(folder / TOKENIZER_CONFIG)
    changed = _with_response(config, template, Tokenizer.from_file(folder / TOKENIZER_FILE))
    if config and changed != config:
        write_json(folder / TOKENIZER_CONFIG, changed)


def _name_a_stop(folder: Path, stop_ids: Sequence[int]) -> None:
    """Let the files name a token that ends a text, if they name another one.

    transformers ignores the name while it generates, but other programs stop at this token alone.
    """
    special_ids = Tokenizer.from_file(folder / TOKENIZER_FILE).special_ids
    texts = {number: text for text, number in special_ids.items()}
    stops = [texts[stop] for stop in stop_ids if stop in texts]
    if not stops or token_names(folder).get("eos_token", stops[0]) in stops:
        return
    for path in (folder / file for file in FILES):
        if path.is_file():
            write_json(path, read_optional(path) | {"eos_token": stops[0]})


def _name_the_class(folder: Path) -> None:
    """Let transformers read the steps of tokenizer.json, and not rebuild those of another class.

    DeepSeek V3 names LlamaTokenizerFast, which gives its texts other ids than its tokenizer.json.
    A class that leaves out a first token that the file would add stays.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_optional(path)
    reads_it = config.get("tokenizer_class") in (READS_THE_FILE, "TokenizersBackend")
    if not reads_it and config.get("add_bos_token") is not False:
        write_json(path, config | {"tokenizer_class": READS_THE_FILE})


def _with_response(
    config: Mapping[str, Any], template: str, tokenizer: Tokenizer
) -> Mapping[str, Any]:
    """Return a tokenizer_config.json for a model whose template is in its own file.

    With our template come the marks of its answers. They go with it. The marks of others stay:
    a job's changes to a template leave them as they are.
    """
    ours = response_template(tokenizer)
    others = {name: value for name, value in config.items() if name != "chat_template"}
    if template == chat_template(tokenizer):
        return {**others, RESPONSE: ours}
    return {name: value for name, value in others.items() if (name, value) != (RESPONSE, ours)}


def _present(folder: Path) -> Iterator[str]:
    """Yield the names of the tokenizer's files that are in the folder."""
    for name in TOKENIZER_FILES:
        if name == MORE_TEMPLATES:
            yield from sorted(f"{name}/{path.name}" for path in folder.glob(f"{name}/*.jinja"))
        elif (folder / name).exists():
            yield name
