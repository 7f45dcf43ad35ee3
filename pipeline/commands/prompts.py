"""`pion generate --prompts FILE`: continue many texts, several at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pion.errors import BadInput
from pipeline.commands.chat import library_settings, prompt_ids, tell_replaced
from pipeline.commands.sampling import Settings

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.model.decoder import Decoder


class Prompt(NamedTuple):
    """A text to continue, and the file and line that it is from."""

    where: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Return the texts to continue: each line that is not empty, or in a `.jsonl` each "prompt".

    Raises BadInput, naming the file and the line.
    """
    try:
        if path.suffix == ".jsonl":
            from pion.data.documents.file_to_documents import json_lines

            prompts = [Prompt(where, _prompt(where, value)) for where, value in json_lines(path)]
        else:
            from pion.untrusted import read_file

            prompts = [
                Prompt(f"{path}:{number}", line)
                for number, line in enumerate(read_file(path).decode().splitlines(), 1)
                if line.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't read these prompts ({error})") from None
    if not prompts:
        raise BadInput(f"{path}: the file has no prompt")
    return prompts


def _prompt(where: str, value: Any) -> str:
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'{where}: not a prompt. Write {{"prompt": "the text to continue"}}')
    return text


def answer_all(
    model: Decoder,
    chat_format: ChatFormat,
    prompts: list[Prompt],
    settings: Settings,
    *,
    as_chat: bool,
) -> None:
    """Print a line of JSON for each prompt, in their order, as soon as the text is complete."""
    from pion.generation.generate import generate_batch

    ids = []
    for prompt in prompts:
        try:
            ids.append(prompt_ids(model, chat_format, prompt.text, settings, as_chat=as_chat))
        except BadInput as error:
            raise BadInput(f"{prompt.where}: {error}") from None
        tell_replaced(chat_format.tokenizer, prompt.text, prompt.where)
    new: list[list[int]] = [[] for _ in prompts]
    complete: set[int] = set()
    printed = 0
    for number, token in generate_batch(model, ids, **library_settings(chat_format, settings)):
        if token is not None:
            new[number].append(token)
            continue
        complete.add(number)
        while printed in complete:
            line = {
                "prompt": prompts[printed].text,
                "text": chat_format.tokenizer.decode(new[printed]),
            }
            print(json.dumps(line), flush=True)
            printed += 1
